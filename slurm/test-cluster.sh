#!/usr/bin/env bash
# A temporary Slurm cluster for tests: controller, accounting and N nodes on one Debian machine.
#
#   eval "$(slurm/test-cluster.sh up 2)"    start it with 2 nodes; prints the variables to export
#   slurm/test-cluster.sh crash n2          power failure of a node: its daemon and its tasks are killed
#   slurm/test-cluster.sh boot n2           start the node again
#   slurm/test-cluster.sh unplug n2         disconnect the node's network; its processes keep running
#   slurm/test-cluster.sh plug n2           connect it again
#   slurm/test-cluster.sh inside n2 CMD..   run a command on the node, outside any job
#   slurm/test-cluster.sh status            show nodes and queue
#   slurm/test-cluster.sh down              stop everything and delete the folder
#   slurm/test-cluster.sh check             print what is missing on this machine; exit code 1 if anything is
#
# Needs root, network and process namespaces, and the Debian packages slurmctld slurmd slurm-client slurmdbd munge
# mariadb-server-core mariadb-client-core iproute2. It installs nothing.
#
# A node is a process with its own host name, process table, network, /dev/shm and local disk ($DIR/local, a tmpfs).
# $DIR/small is a disk of 6 MB that all nodes and this machine share, to be filled. There are two partitions: jobs in
# `main` are preempted and requeued when a job in `urgent` needs their nodes. Each node reports 4 CPUs and 2 GPUs of the
# type `tesla`; the GPUs do not exist.
#
# Environment variables of `up`, with defaults: CLUSTER_DIR (folder of the cluster, /tmp/test-slurm), CLUSTER_PORT
# (first of N + 3 TCP ports, 17817), CLUSTER_NET (first three bytes of the addresses, 198.18.91), CLUSTER_GRACE_S
# (seconds between the signal of a preemption and the end of the job, 20), CLUSTER_SILENCE_S (seconds without a heartbeat
# after which a node is down, 12).
set -Eeuo pipefail
trap 'echo "test-cluster: line $LINENO failed: $BASH_COMMAND" >&2' ERR

DIR=${CLUSTER_DIR:-/tmp/test-slurm}
NET=${CLUSTER_NET:-198.18.91}
PORT=${CLUSTER_PORT:-17817}
TAG=tc$(printf %s "$DIR" | cksum | cut -c1-6)
ME=$(readlink -f "$0")

fail() {
    echo "test-cluster: $*" >&2
    exit 1
}

# ---- daemons; a file holds the process id and start time of each

started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }

running() { # NAME: its process id
    local id start
    read -r id start 2>/dev/null <"$DIR/pids/$1" && [ -n "$start" ] && [ "$(started_at "$id")" = "$start" ] && echo "$id"
}

start() { # NAME COMMAND..
    local name=$1 id
    shift
    running "$name" >/dev/null && return
    setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 8>&- &
    id=$!
    disown "$id"
    echo "$id $(started_at "$id")" >"$DIR/pids/$name"
}

stop() { # NAME SIGNAL SECONDS
    local id
    id=$(running "$1") || return 0
    kill -s "$2" "$id" || true
    for _ in $(seq $((10 * $3))); do
        running "$1" >/dev/null || return 0
        sleep 0.1
    done
    kill -s KILL "$id" 2>/dev/null || true
}

alone() { # COMMAND..: not while another cluster on this machine runs such a command, because they would conflict
    (
        flock 7
        "$@"
    ) 7>/tmp/test-cluster.lock
}

await() { # WHAT COMMAND..: wait until the command succeeds, for 90 seconds at most
    local what=$1 end=$((SECONDS + 90))
    shift
    until "$@" >"$DIR/log/await.out" 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what did not start; last output: $(tail -n 3 "$DIR/log/await.out"); see $DIR/log"
        sleep 0.1
    done
}

# ---- configuration

write_files() { # NODES
    local node munge="socket=$DIR/munge.socket"
    cat >"$DIR/etc/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname -s)($NET.1)
SlurmctldPort=$PORT
SlurmUser=root
AuthType=auth/munge
# A requeued job is held for the lifetime of a credential: 120 seconds by default, 5 at least.
AuthInfo=$munge,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pids/own.slurmctld
SlurmdPidFile=$DIR/pids/own.%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=${CLUSTER_SILENCE_S:-12}
KillWait=5
ReturnToService=2
FirstJobId=$(($(date +%s) % 50000000 + 1000))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$preemption_signal
EnforcePartLimits=ALL
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$DIR/munge.socket
END
    for node in $(seq "$1"); do
        echo "NodeName=n$node NodeAddr=$NET.$((100 + node)) Port=$((PORT + 2)) CPUs=4 RealMemory=4096 Gres=gpu:tesla:2 State=UNKNOWN"
    done >>"$DIR/etc/slurm.conf"
    cat >>"$DIR/etc/slurm.conf" <<END
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=${CLUSTER_GRACE_S:-20} MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
END
    # Slurm needs a device file for each GPU, but does not open it.
    mknod "$DIR/etc/gpu0" c 1 3
    mknod "$DIR/etc/gpu1" c 1 3
    echo "NodeName=n[1-$1] Name=gpu Type=tesla File=$DIR/etc/gpu[0-1]" >"$DIR/etc/gres.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$NET.1 $(hostname -s)"
        for node in $(seq "$1"); do echo "$NET.$((100 + node)) n$node"; done
    } >"$DIR/etc/hosts"
    (
        umask 077
        head -c 1024 /dev/urandom >"$DIR/munge.key"
        cat >"$DIR/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=$munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/pids/own.slurmdbd
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=accounting
CommitDelay=1
END
    )
}

# ---- network: a switch in a separate namespace, which the firewall of the machine does not affect; one link per node

plug_all() { # NODES
    local node
    ip netns add "$TAG-switch"
    ip -n "$TAG-switch" link add br0 type bridge
    ip -n "$TAG-switch" link set br0 up
    ip link add "$TAG" type veth peer name head netns "$TAG-switch"
    ip -n "$TAG-switch" link set head master br0 up
    ip addr add "$NET.1/24" dev "$TAG"
    ip link set "$TAG" up
    for node in $(seq "$1"); do
        ip netns add "$TAG-n$node"
        ip -n "$TAG-switch" link add "n$node" type veth peer name eth0 netns "$TAG-n$node"
        ip -n "$TAG-switch" link set "n$node" master br0 up
        ip -n "$TAG-n$node" addr add "$NET.$((100 + node))/24" dev eth0
        ip -n "$TAG-n$node" link set eth0 up
        ip -n "$TAG-n$node" link set lo up
    done
}

unplug_all() {
    local name
    ip link del "$TAG" 2>/dev/null || true
    for name in $(ip netns list | awk '{ print $1 }' | grep "^$TAG-" || true); do ip netns del "$name"; done
}

# ---- nodes

boot() { # NODE
    mkdir -p "$DIR/spool/$1"
    start "$1" nsenter --net="/run/netns/$TAG-$1" unshare --fork --kill-child --pid --mount-proc --uts --ipc --mount \
        env CLUSTER_DIR="$DIR" bash "$ME" live-as "$1"
}

live_as() { # NODE: the first process of a node
    hostname "$1"
    mount -t tmpfs -o mode=1777 none /dev/shm
    mount -t tmpfs -o mode=1777,size=64M none "$DIR/local"
    mount --bind "$DIR/etc/hosts" /etc/hosts
    mkdir -p /etc/slurm
    mount --bind "$DIR/etc" /etc/slurm
    SLURM_CONF=$DIR/etc/slurm.conf slurmd -D -N "$1" &
    # The node ends with this process, so it keeps running, and reaps orphaned processes.
    trap : TERM INT
    while kill -0 $! 2>/dev/null; do wait || true; done
}

first_of() { # NODE: process id, on this machine, of the node's first process
    local outer
    outer=$(running "$1") && tr -d ' ' <"/proc/$outer/task/$outer/children" | grep .
}

crash() { # NODE
    local id
    if id=$(first_of "$1"); then kill -s KILL "$id"; fi
    stop "$1" KILL 5
}

all_serve() { # NODES
    [ "$(sinfo --noheader --Node --format '%N %t' | sort -u | grep -cE ' (idle|mix|alloc|comp)$')" = "$1" ]
}

registered() {
    # A busy daemon may answer "Unspecified error" or nothing at all, whether or not it has added the cluster.
    sacctmgr --noheader list cluster format=cluster | grep -qw test ||
        timeout 20 sacctmgr --immediate add cluster test
}

known_node() {
    [ -e "$DIR/nodes" ] || fail "no cluster in $DIR; start one with: $0 up 2"
    [[ ${1:-} =~ ^n[0-9]+$ ]] && [ "${1#n}" -ge 1 ] && [ "${1#n}" -le "$(cat "$DIR/nodes")" ] ||
        fail "'${1:-}' is not a node; choose one of n1 to n$(cat "$DIR/nodes")"
}

# ---- commands

check() {
    local tool missing=()
    [ "$(id -u)" = 0 ] || fail "a test cluster needs root"
    for tool in slurmctld slurmd slurmdbd sbatch munged mariadbd mariadb-install-db ip; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || fail "not installed: ${missing[*]} (Debian: slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core iproute2)"
    unshare --fork --pid --mount-proc --uts --ipc --mount --net -- sh -c 'hostname probe && mount -t tmpfs none /dev/shm' 2>/dev/null ||
        fail "namespaces cannot be made here, for example because this is an unprivileged container"
}

up() { # NODES
    local nodes=${1:-2} version node
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || fail "up takes a number of nodes, 1 to 99"
    check
    if [ -e "$DIR/nodes" ]; then
        [ "$(cat "$DIR/nodes")" = "$nodes" ] || fail "$DIR holds a cluster of $(cat "$DIR/nodes") nodes; stop it first with: $0 down"
    else
        [ -z "$(ls -A "$DIR" 2>/dev/null)" ] || fail "$DIR is not empty"
        mkdir -p "$DIR"/{etc,log,pids,state,spool,local,small}
        # Before the nodes start, so that they have it too.
        mount -t tmpfs -o mode=1777,size=6M none "$DIR/small"
        version=$(slurmd -V | grep -oE '[0-9]+\.[0-9]+' | head -1)
        # Send preempted jobs the signal that they asked for; the option was moved in 23.02.
        preemption_signal=PreemptParameters=send_user_signal
        [ "$(printf '%s\n' "$version" 23.02 | sort -V | head -1)" = 23.02 ] ||
            preemption_signal=SlurmctldParameters=preempt_send_user_signal
        write_files "$nodes"
        alone unplug_all
        alone plug_all "$nodes"
        echo "$nodes" >"$DIR/nodes"
    fi
    export SLURM_CONF=$DIR/etc/slurm.conf
    running munged >/dev/null || rm -f "$DIR"/munge.socket*
    start munged munged --force --foreground --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" \
        --pid-file="$DIR/pids/own.munged" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge.seed"
    [ -d "$DIR/db" ] || alone mariadb-install-db --no-defaults --user=root --datadir="$DIR/db" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user=root \
        --innodb-log-file-size=8M >"$DIR/log/database-setup.out" 2>&1
    start mariadbd mariadbd --no-defaults --user=root --datadir="$DIR/db" --socket="$DIR/db.socket" --skip-networking \
        --performance-schema=0 --innodb-buffer-pool-size=64M --innodb-log-file-size=8M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --pid-file="$DIR/pids/own.mariadbd"
    await munged munge --socket="$DIR/munge.socket" --no-input
    await mariadbd mariadb --no-defaults --socket="$DIR/db.socket" --user=root -e 'select 1'
    start slurmdbd env MYSQL_UNIX_PORT="$DIR/db.socket" slurmdbd -D
    await slurmdbd sacctmgr --noheader list cluster
    await "the entry in the accounting" registered
    start slurmctld slurmctld -D
    await slurmctld scontrol ping
    for node in $(seq "$nodes"); do boot "n$node"; done
    await "a node" all_serve "$nodes"
    printf 'export SLURM_CONF=%q CLUSTER_DIR=%q\n' "$SLURM_CONF" "$DIR"
}

down() {
    local node name
    [ -e "$DIR/nodes" ] || { [ -d "$DIR/pids" ] || return 0; }
    stop slurmctld TERM 5
    for node in $(seq "$(cat "$DIR/nodes" 2>/dev/null || echo 0)"); do crash "n$node"; done
    for name in slurmdbd mariadbd munged; do stop "$name" TERM 15; done
    alone unplug_all
    if mountpoint -q "$DIR/small"; then umount --lazy "$DIR/small"; fi
    rm -rf "${DIR:?}"/{etc,log,pids,state,spool,local,small,db,db.socket,munge.*,nodes}
    rmdir "$DIR" 2>/dev/null || true
    rm -f "$DIR.lock"
}

[[ $DIR =~ ^/[A-Za-z0-9._/-]{2,60}$ ]] || fail "CLUSTER_DIR must be a short plain path, not '$DIR'"
export SLURM_CONF=$DIR/etc/slurm.conf
command=${1:-help}
[ $# = 0 ] || shift
case $command in
up | down | crash | boot | unplug | plug)
    exec 8>"$DIR.lock"
    flock 8
    ;;
esac
case $command in
up) up "$@" ;;
down) down ;;
check) check ;;
status) sinfo --Node --long && squeue ;;
crash | boot) known_node "${1:-}" && "$command" "$1" ;;
unplug) known_node "${1:-}" && ip -n "$TAG-switch" link set "$1" down ;;
plug) known_node "${1:-}" && ip -n "$TAG-switch" link set "$1" up ;;
inside)
    known_node "${1:-}"
    id=$(first_of "$1") || fail "$1 is down"
    shift
    exec nsenter --target "$id" --mount --uts --ipc --net --pid -- "$@"
    ;;
live-as) live_as "$1" ;;
*)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$ME" >&2
    [ "$command" = help ]
    ;;
esac
