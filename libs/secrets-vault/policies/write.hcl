# Services that take secrets: they seal and rewrap, and open nothing. `update` alone makes no key by accident.
path "transit/encrypt/gantry" { capabilities = ["update"] }
path "transit/rewrap/gantry"  { capabilities = ["update"] }
path "transit/keys/gantry"    { capabilities = ["read"] }
