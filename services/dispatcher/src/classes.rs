//! Resource classes: what the name in a job's `resource_class` means (config-language §11.5).

use agent_api::Resources;
use model::plan::{Executor, JobDefinition};
use std::collections::{BTreeMap, BTreeSet};

const GIB: u64 = 1 << 30;

/// For which executors a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum For {
    /// Containers.
    Docker,
    /// The machine itself.
    Machine,
}

/// What a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// The classes of this server, by executor and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes(BTreeMap<(For, String), Class>);

impl Default for Classes {
    /// Those of the reference product, without generations: `large.gen2` means `large`.
    fn default() -> Self {
        let docker = [
            ("small", 1, 2 * GIB),
            ("medium", 2, 4 * GIB),
            ("medium+", 3, 6 * GIB),
            ("large", 4, 8 * GIB),
            ("xlarge", 8, 16 * GIB),
            ("2xlarge", 16, 32 * GIB),
            ("2xlarge+", 20, 40 * GIB),
        ];
        let machine = [
            ("medium", 2, 15 * GIB / 2),
            ("large", 4, 15 * GIB),
            ("xlarge", 8, 32 * GIB),
            ("2xlarge", 16, 64 * GIB),
            ("2xlarge+", 32, 64 * GIB),
        ];
        let arm = [
            ("arm.medium", 2, 8 * GIB),
            ("arm.large", 4, 16 * GIB),
            ("arm.xlarge", 8, 32 * GIB),
            ("arm.2xlarge", 16, 64 * GIB),
        ];
        let mut all = Self(BTreeMap::new());
        for (executor, classes) in
            [(For::Docker, &docker[..]), (For::Docker, &arm), (For::Machine, &machine), (For::Machine, &arm)]
        {
            for (name, processors, memory_bytes) in classes {
                all.set(executor, name, Class { cpu_millis: processors * 1000, memory_bytes: *memory_bytes });
            }
        }
        all
    }
}

impl Classes {
    /// Adds a class, or gives one another meaning.
    pub fn set(&mut self, executor: For, name: &str, class: Class) {
        self.0.insert((executor, name.to_owned()), class);
    }

    /// What the job's class means.
    ///
    /// # Errors
    /// The server does not know the class; the text names those that it knows.
    pub fn resolve(&self, definition: &JobDefinition) -> Result<Resources, String> {
        let executor = match &definition.executor {
            Executor::Docker { .. } => "docker",
            Executor::Machine { .. } => "machine",
            Executor::Macos { .. } => "macos",
        };
        self.named(executor, &definition.resource_class)
    }

    /// What a class means for an executor: `docker`, `machine` or `macos`.
    ///
    /// # Errors
    /// As of [`Self::resolve`].
    pub fn named(&self, executor: &str, asked: &str) -> Result<Resources, String> {
        let executor = match executor {
            "docker" => For::Docker,
            "machine" => For::Machine,
            // Where it runs is for a runner to say.
            _ => return Ok(unlimited(asked)),
        };
        // Of a self-hosted runner: its machine is what it is.
        if asked.contains('/') {
            return Ok(unlimited(asked));
        }
        let name = if asked.is_empty() { "medium" } else { asked };
        let plain = name.strip_suffix(".gen2").or_else(|| name.strip_suffix(".gen3")).unwrap_or(name);
        let class = [name, plain].into_iter().find_map(|name| self.0.get(&(executor, name.to_owned())));
        let class = class.ok_or_else(|| {
            let known: BTreeSet<&str> =
                self.0.keys().filter(|(of, _)| *of == executor).map(|(_, name)| name.as_str()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            format!(
                "the resource class {asked} is not known for this kind of executor; known are {}; an administrator adds \
                 more under `[resource_classes]`",
                known.join(", ")
            )
        })?;
        Ok(Resources {
            class: name.to_owned(),
            cpu_millis: Some(class.cpu_millis),
            memory_bytes: Some(class.memory_bytes),
        })
    }
}

fn unlimited(class: &str) -> Resources {
    Resources { class: class.to_owned(), ..Resources::default() }
}
