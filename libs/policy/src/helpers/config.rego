package circleci.config

import data.circleci.utils

# Name → version of the orbs that the configuration imports from a registry.
orbs[name] = version {
	[name, version] := split(input.orbs[_], "@")
}

ban_orbs(names) = {name: reason |
	name := names[_]
	orbs[name]
	reason := sprintf("%s orb is not allowed in CircleCI configuration", [name])
}

ban_orbs_version(references) = {reference: reason |
	reference := references[_]
	[name, version] := split(reference, "@")
	orbs[name] == version
	reason := sprintf("%s orb is not allowed in CircleCI configuration", [reference])
}

# Names of all jobs that workflows call.
jobs[name] {
	name := utils.get_element_name(input.workflows[_].jobs[_])
}

require_jobs(names) = {name: reason |
	name := names[_]
	not jobs[name]
	reason := sprintf("%s job is required", [name])
}

resource_class_by_project(projects_of_class) = {reason |
	job := input._compiled_.jobs[name]
	allowed := projects_of_class[job.resource_class]
	not utils.to_set(allowed)[data.meta.project_id]
	reason := sprintf("project is not allowed to use resource_class \"%s\" declared in job \"%s\"", [job.resource_class, name])
}

contexts_blocked_by_project_ids(projects, contexts) = {reason |
	utils.to_set(projects)[data.meta.project_id]
	job := input._compiled_.workflows[workflow].jobs[_][name]
	found := utils.to_set(job.context) & utils.to_set(contexts)
	count(found) > 0
	reason := sprintf("%s.%s: uses context value(s) in blocklist for project: %s", [workflow, name, concat(", ", found)])
}

contexts_allowed_by_project_ids(projects, contexts) = {reason |
	utils.to_set(projects)[data.meta.project_id]
	job := input._compiled_.workflows[workflow].jobs[_][name]
	found := utils.to_set(job.context) - utils.to_set(contexts)
	count(found) > 0
	reason := sprintf("%s.%s: uses context value(s) not in allowlist for project: %s", [workflow, name, concat(", ", found)])
}

contexts_reserved_by_project_ids(projects, contexts) = {reason |
	not utils.to_set(projects)[data.meta.project_id]
	job := input._compiled_.workflows[workflow].jobs[_][name]
	found := utils.to_set(job.context) & utils.to_set(contexts)
	count(found) > 0
	reason := sprintf("%s.%s: uses context value(s) reserved to other projects: %s", [workflow, name, concat(", ", found)])
}

contexts_reserved_by_branches(branches, contexts) = {reason |
	job := input.workflows[workflow].jobs[_][name]
	found := utils.to_set(job.context) & utils.to_set(contexts)
	count(found) > 0
	foreign := utils.to_set(job.filters.branches.only) - utils.to_set(branches)
	count(foreign) > 0
	reason := sprintf("%s.%s: uses context value(s): %s - that cannot be used with branches: %s", [workflow, name, concat(", ", found), concat(", ", foreign)])
} | {reason |
	job := input.workflows[workflow].jobs[_][name]
	found := utils.to_set(job.context) & utils.to_set(contexts)
	count(found) > 0
	not job.filters.branches.only
	reason := sprintf("%s.%s: uses context value(s): %s - that must be limited to branches: %s", [workflow, name, concat(", ", found), concat(", ", utils.to_set(branches))])
}
