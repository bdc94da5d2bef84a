#!/bin/sh
# Puts the agent and its configuration into a directory ($DIR) that the host and the pod see under the same path.
set -eu
: "${COORDINATOR_SERVICE_HOST:?there is no service of the coordinator in this namespace yet}"

# A name of Gantry has no dots.
name=${NODE_NAME%%.*}
bracketed() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf %s "$1" ;; esac; }

# In one step: shims of containers that run may execute the old one.
install -m 755 "$PROGRAM" "$DIR/node-agent.new"
mv -f "$DIR/node-agent.new" "$DIR/node-agent"
sed -e "s|NAME|$name|" -e "s|HOST:|$(bracketed "$HOST_IP"):|" \
    -e "s|COORDINATOR:|$(bracketed "$COORDINATOR_SERVICE_HOST"):|" "$TEMPLATE" >"$DIR/node-agent.toml"
