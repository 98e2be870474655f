"""Images of Zeiss ZEN; the files were written by libCZI, the library of Zeiss."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan

pytest.importorskip("czifile")

# 5 x 6 pixels of 16 bits, 0, 1000, ..., 29000; and a second tile on the right with values 1 larger.
TILES = (
    "c-rk&O-vI(6y8Dr2?sPBIB=lC0VQd7x3K*o<HU9gx<~=r1-qLN9lO)ANq1Y?B~VXzF?!RB(RhKICLZ*ri6(e4def75A$Ze^(VO0!?N0wlgBV"
    "Rrqc3US``*0wX7aw*nW|DE9=<Ro%}g?mv^8oM(<n>NuWjx6pLw=luHAn44u9T{?U;>jCw8-g`7bRlYI!~q3z5jooOq6KN(bT|)fZ_TpgOu}F"
    "Sy&9)#@UjB(*#1v_kEUIvryg=g-z^6Q9_`CpYmWn)v>NfY_uQj)vth1TxALA&6s3&+2AI(xAX`I5-}_9zUNBdd7Jl_JlOVc~ThjLMR;|Isn+"
    "Z1i(5q*lJOR`PlxZ>q*aM@AbZXe{$gT;ECa*Bi}~%ysvzZ{C6fc;BsVsDmd+)Jre)2u%m1*-A6a^x_-$xyYd_S?X@4oU*{qDbG0~sV@L?0F^"
    "%&C_>e&OBVQpch>4XJG{MJ*IBonV{JEG<?QgrD_H6au=v(Pm2Ev0UhmVbXAN}Bc?R)IMJ8>22k@Hib>EpBA@vjT-l^077&@Eijks;OdSE<J^"
    "+mxBDif;S2?<XJ`D1)Q9)T)6^3xXK7kcKP-fn=t01p`@n&V)`B1PT2LPD0)XSjQ?m6eu`Yaj*(`2dfSiD_C@}T*0z~6BV3ra17G=F$khMIaZ"
    "MzflP(Cj7$?}YnEHmP7P6ef*XQhUSG#qxs=E7OaYa6KVWMfz|zQ?WlviD1_!6p7SviL>sA&+iwteq0AkK4FXT&E{j#V^g*A5uo49~1tdTwGD"
    "%rAHA)L==^%QOKEHZFiE?~<Ju!sxx@u1(!dpW>XAYdDk*#@=}DP;em2yGTNigp)^7BW+~+^{5R)FR5RV(9Y<*u#-4)PZ(0oVa}%$}eZA)eNp"
    "#EKASDRu9V7=8kQg$V0uaQ7Jwt%5!mr*`pWRj;rzS*x!;?de2+&?fL<|S%}L"
)
# 5 x 6 pixels of 8-bit colour: red is 255 - green // 2 ..., as below.
COLOUR = (
    "c-o8d3=VP(ck}ddWq<%CRGN_i6-ankt-NqMt>a0vQpaB2>Qm@^keUPRP{k|^qhN@GC~*1+4s~+!@ptwH#w|2K?1a+sFm+JcC5#zJDllO)3zR"
    "G(plmiIIugoeMWTHfP}3hHk{!rm&RE1ku!sd?5u*mM@pTPxba4!Ew6h6GOfR;x2}&)=%*o74_e`-fH!wA|Fi%O=O-waU(KRtmGS*ErNi)$+v"
    "M^3cHaAW&HncFX(MQr?qYp7dA8sfE!+&PRKkUpuxLLpOvwslgd?U{NLYnu9JpTh_!8_{0H?%~r>WN=8l00iBebP$ysGa;lC&j&P$~(POxB97"
    "X4ANX1s<kRoXIZS?qC|svsYbIhO{V3VO)9kLLy2FQeGCi>m?7fxU^LUnPX9KZxryniF8Rr&xv6<2b~e7LC5b7CC5d)6o_T5cMY)M3nfZBk5L"
    "I?I!I@R55q4%a`Va<~A8BU_;YULFQFew9eiVf74C6aP_#rTU2!tOD;|D|dzA(P8osCN-&{f4i7XTBDb4FrbUTO}4rQn%js|00R87SG=1Y}mE"
    "=7dxhq}n;97a5t@=pzJd^q~q7EKoW`HXpBUsQ(e+6p~qzlWJE2OwnM5jdOl3SfZdZCo{=8%Co3kAw4xOwJ5P9H3euTR2FC>+yuvhf}G4`X!!"
    "ai=B6U)wb2I)*o37Pfm~;2re~-J%t|n>jXsKIeUzvQPEG`6H(;EVq~;cb!mzj`F)uk499$8=U<ymjDNVIA(lbrfH82Mn3g&{s0-_F0M<mHQq"
    "To6Vu&LFDx=SDKP<=$A(??B?u>9-d8RY65;vW>r-~cVybQq~y&XEg-dVK%@|IJQ`"
)
COMPRESSED = (
    "c-rk%J#5oJ6m}Y*NDLq`AjCja1|mdq&W}S{9j7Kv+PXAt6}xF-3DHY@q?T+aB(B;pF~Y{k*bSsEEJ#eKBO@atFflT+AaVAc<0Ohepe_}><-P"
    "CS`_sGcY+X^Sh3zF}tt>E^8P^eET%JW&V@L5X)vHJK{pEK%ok{G)9MAILGs1s4<)ZuiP`8T3wGH_my<1L*ms~&KaVuPxYTiL?CaiF7XnC}#P"
    "k24u;P%-OT@l9l=V^V4PoCn_ruft;zLOAGDQksNK`S7r;dURvDsfHAblQr6@_9qbHZ#pcQ%Z}8tYM@Q*vQN$(m5%GGt#`6%Zd<;BtXDwfML;"
    "SBocoEe#GEsI`G#IZx5e#>x=PA-#@*7{o={)W<GZQ+sETq&kuH1gy`&ri<hrlyME*5tz<g4fQn12>(#BseN0UI(QocI=qCt=QRW}&nSY!AP_"
    "c2Flsc_Fn>a3l72;w8yBI;mdD!XM*fl#2Vo?aH=3`PvIS82H;|7u#ZZNE)6vH~ha)4!qwE$}js{vLSt^~M(V9BIY_2~qZH1aNX9Abr5Ofl}x"
    "aeG0WLvYhPAeJ`h613dIgA^Sz^gzHPL(3!LXoFv;^9_WX(oEMP$fcb24JdbP|DZdt%%-d>z5Q65IHZSNV$h!al(rmJD0I7)+2R{s$2J+sg}`"
    "^f8tHlCp<FVRq>m|p5R4^*vCC3h*n4pF)?8xuy)E`#?6io#usU5-4O@EzrIQj#h<9jFA9~ARaT6JhKhDsH8RE29z~=(PK|x46FiuGJeoIQVE"
    "NdIphOo##Y_}sP`<?q+Iqm<0pSp}gi~"
)
RAMP = (np.arange(30).reshape(5, 6) * 1000).astype(np.uint16)


def write_czi(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.decompress(base64.b85decode(content)))


def test_tiles_and_colour(tmp_path: Path) -> None:
    write_czi(tmp_path / "x" / "grey.czi", TILES)
    write_czi(tmp_path / "x" / "rgb.czi", COLOUR)
    result = build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    assert not result.skipped
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], np.hstack([RAMP, RAMP + 1]))
    blue, green = RAMP // 256, RAMP // 512
    np.testing.assert_array_equal(archive.read_image(1), np.dstack([255 - blue, green, blue]))
    assert [record.um_per_pixel for record in archive.records] == [pytest.approx(0.25)] * 2


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_czi(tmp_path / "x" / "grey.czi", TILES)
    write_czi(tmp_path / "x" / "zstd.czi", COMPRESSED)
    (tmp_path / "x" / "damaged.czi").write_bytes((tmp_path / "x" / "grey.czi").read_bytes()[:700])
    result = build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    assert result.added == 1
    reasons = {Path(one.path).name: one.reason for one in result.skipped}
    assert set(reasons) == {"zstd.czi", "damaged.czi"}
    assert "TIFF" in reasons["zstd.czi"]
