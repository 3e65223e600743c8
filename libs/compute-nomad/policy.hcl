# What the scheduler's token needs, in a namespace of its own. Nothing here opens Nomad to anybody who runs a job.
namespace "gantry" {
  capabilities = ["submit-job", "read-job", "list-jobs"]
}
