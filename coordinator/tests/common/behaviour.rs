//! How a scripted agent answers.

use std::collections::HashMap;

use proto::v1::{Container, ContainerState, NodeFacts, Refusal};

/// What an agent is, and how it answers.
#[derive(Clone)]
pub(crate) struct Behaviour {
    pub(crate) containers: Vec<Container>,
    pub(crate) facts: NodeFacts,
    pub(crate) refusals: Vec<Refusal>,
    /// What one container has beside those.
    pub(crate) refused: HashMap<String, Vec<Refusal>>,
    /// What it lacks for any container of another node.
    pub(crate) lacks: Vec<Refusal>,
    /// The highest epochs that it knows and does not report.
    pub(crate) hidden_epochs: HashMap<String, u64>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            containers: Vec::new(),
            facts: NodeFacts {
                kernel_release: "6.18.0".into(),
                arch: "x86_64".into(),
                vdso_hash: 7,
                xsave_size: 2440,
                xcr0: 0xe7,
                memory_total: 8 << 30,
                memory_free: 4 << 30,
                peer_protocol_versions: vec![1],
                ..NodeFacts::default()
            },
            refusals: Vec::new(),
            refused: HashMap::new(),
            lacks: Vec::new(),
            hidden_epochs: HashMap::new(),
        }
    }
}

impl Behaviour {
    /// With running containers.
    pub(crate) fn running(names: &[&str]) -> Self {
        Self { containers: names.iter().map(|name| container(name)).collect(), ..Self::default() }
    }
}

pub(crate) fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        state: ContainerState::Running.into(),
        pid: 42,
        memory_bytes: 1 << 20,
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        ..Container::default()
    }
}
