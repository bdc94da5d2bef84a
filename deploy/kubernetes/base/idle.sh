#!/bin/bash
# Waits until no migration is under way on this node, for as long as $LIMIT seconds. It asks the agent's metrics.
set -u
address=$(sed -n 's/^metrics_listen = "\(.*\):\([0-9]*\)"$/\1 \2/p' "$DIR/node-agent.toml")
read -r host port <<<"$address"
host=${host#[}
host=${host%]}

# Ends with 0 while there is a session, with 1 when there is none, with 2 when the agent does not answer.
busy() {
    exec 3<>"/dev/tcp/$host/$port" || return 2
    printf 'GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n' >&3
    metrics=$(cat <&3)
    exec 3>&-
    case $metrics in *'# EOF'*) ;; *) return 2 ;; esac
    case $metrics in *gantry_sessions{*) return 0 ;; *) return 1 ;; esac
}

while ((SECONDS < LIMIT)); do
    (busy)
    case $? in
    0) sleep 1 ;;
    1) exit 0 ;;
    # Nothing is to be waited for.
    *) exit 2 ;;
    esac
done
exit 3
