#!/bin/sh
# Makes the secrets of docker-compose.yml that are missing, a file each, in deploy/compose/secrets. Changes none that is there.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
made() { [ -s "secrets/$1" ] || printf %s "$2" >"secrets/$1"; }
for name in postgres rabbitmq redis mongo s3; do made "$name" "$(random)"; done
# Every service signs with it and checks what others signed.
made signing_key "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
made database_url "postgres://gantry:$(cat secrets/postgres)@postgres/gantry"
made bus_url "amqp://gantry:$(cat secrets/rabbitmq)@rabbitmq:5672/%2f"
made live_url "redis://:$(cat secrets/redis)@redis:6379"
made records_url "mongodb://gantry:$(cat secrets/mongo)@mongo:27017/gantry?authSource=admin"
# Written by the services that prepare Vault and Nomad; a file that a secret is made from must be there.
for name in vault_keys nomad_root nomad write_role_id write_secret_id deliver_role_id deliver_secret_id; do
  [ -e "secrets/$name" ] || : >"secrets/$name"
done
# The services of the suite have another user than whoever runs this.
# Nobody else on this machine enters the folder.
chmod 644 secrets/*
