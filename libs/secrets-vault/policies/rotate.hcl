# Whoever rotates and retires keys by hand; Vault can rotate by itself (auto_rotate_period of the key).
path "transit/keys/gantry/rotate" { capabilities = ["update"] }
path "transit/keys/gantry/config" { capabilities = ["update"] }
path "transit/keys/gantry/trim"   { capabilities = ["update"] }
