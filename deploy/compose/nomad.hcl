data_dir  = "/nomad/data"
bind_addr = "0.0.0.0"
advertise {
  http = "nomad"
  rpc  = "nomad"
  serf = "nomad"
}
acl {
  enabled = true
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled = true
  servers = ["nomad:4647"]
}
