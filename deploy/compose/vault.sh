#!/bin/sh
# Initialises, unseals and prepares Vault (docs/how-to/s3-and-vault.md). Its one unseal key lies in a file: for a machine of one's
# own, not for more.
set -eu
export VAULT_ADDR=http://vault:8200
out=/out
until vault status >/dev/null 2>&1 || [ $? = 2 ]; do sleep 1; done
field() { tr -d ' \n' <$out/vault_keys | sed "s/.*\"$1\":\[\{0,1\}\"\([^\"]*\)\".*/\1/"; }
[ -s $out/vault_keys ] || vault operator init -key-shares=1 -key-threshold=1 -format=json >$out/vault_keys
vault operator unseal "$(field unseal_keys_b64)" >/dev/null
[ ! -s $out/deliver_secret_id ] || exit 0
VAULT_TOKEN=$(field root_token); export VAULT_TOKEN
until vault secrets list >/dev/null 2>&1; do sleep 1; done
vault secrets enable transit
vault write -f transit/keys/gantry derived=true auto_rotate_period=2160h
vault auth enable approle
for role in write deliver; do
  vault policy write gantry-$role /policies/$role.hcl
  vault write auth/approle/role/gantry-$role token_policies=gantry-$role token_ttl=1h token_max_ttl=24h
done
for role in write deliver; do
  vault read -field=role_id auth/approle/role/gantry-$role/role-id >$out/${role}_role_id
  vault write -f -field=secret_id auth/approle/role/gantry-$role/secret-id >$out/${role}_secret_id
done
