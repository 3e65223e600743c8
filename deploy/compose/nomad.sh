#!/bin/sh
# Takes Nomad's first token and makes the scheduler's (docs/how-to/nomad.md).
set -eu
export NOMAD_ADDR=http://nomad:4646
out=/out
[ ! -s $out/nomad ] || exit 0
secret() { tr -d ' \n' | sed 's/.*"SecretID":"\([^"]*\)".*/\1/'; }
until said=$(nomad acl bootstrap -json); do sleep 1; done
echo "$said" | secret >$out/nomad_root
NOMAD_TOKEN=$(cat $out/nomad_root); export NOMAD_TOKEN
nomad namespace apply gantry
nomad acl policy apply gantry /policy.hcl
nomad acl token create -policy=gantry -json | secret >$out/nomad
