#!/bin/sh
# Becomes the agent, in the namespaces of the host: containers get what the host has, not what the pod has.
set -eu

# Containers inherit both.
echo 0 >/proc/self/oom_score_adj
ulimit -n 1048576
exec nsenter --target 1 --mount --uts --ipc --net --cgroup -- "$DIR/node-agent" serve --config "$DIR/node-agent.toml"
