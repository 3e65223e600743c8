# The service that hands secrets to jobs: it opens, and seals nothing.
path "transit/decrypt/gantry" { capabilities = ["update"] }
path "transit/keys/gantry"    { capabilities = ["read"] }
