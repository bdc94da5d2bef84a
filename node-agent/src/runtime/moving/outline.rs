//! What a node is asked before a container comes: whether it has what the container needs. Nothing is made for it.

use image::Refusal;
use image::groups::Groups;
use image::state::Needs;
use serde::{Deserialize, Serialize};

use super::blueprint::Blueprint;
use super::{MovingNode, groups};
use crate::runtime::Runtime;
use crate::session::compat;
use crate::session::ports::PortError;

/// A container as another node needs to know it to say whether it can come.
#[derive(Debug, Serialize, Deserialize)]
struct Outline {
    /// Without the state of its network, which only a sandbox can try.
    blueprint: Blueprint,
    groups: Groups,
    needs: Needs,
}

/// What stands against a container that this runtime is to take, before anything is made.
pub(super) fn lacks(runtime: &Runtime, blueprint: &Blueprint) -> Vec<Refusal> {
    let link = runtime.link_of(&blueprint.name);
    let mut lacks = blueprint.missing(runtime.options().bridge.as_deref(), &link);
    lacks.extend(blueprint.verify().err().map(|error| error.refusal()));
    lacks
}

impl MovingNode {
    /// Describes a container for [`MovingNode::lacks_for`] of another node.
    ///
    /// # Errors
    /// [`PortError::Refused`] when its configuration contradicts what is there; when it cannot be read.
    pub fn outline(&self, container: &str, needs: Needs, groups: Groups) -> Result<Vec<u8>, PortError> {
        let blueprint = self.leaving(container)?.describe(Vec::new())?;
        serde_json::to_vec(&Outline { blueprint, groups, needs })
            .map_err(|error| PortError::failed(format!("describe {container}"), error))
    }

    /// What this node lacks for a container that [`MovingNode::outline`] of another one described; empty when it can
    /// come as far as can be told.
    ///
    /// # Errors
    /// When the description is not understood.
    pub fn lacks_for(&self, container: &str, outline: &[u8]) -> Result<Vec<Refusal>, PortError> {
        let outline = serde_json::from_slice(outline).map_err(|error| {
            PortError::failed(format!("understand the description of {container}"), error)
        })?;
        let Outline { blueprint, groups, needs } = outline;
        let mut lacks = compat::give(&needs, &engine::target::gives());
        lacks.extend(compat::limited(&needs, &groups));
        lacks.extend(groups::lacks(&self.runtime.cgroup_of(&blueprint.name), &groups));
        lacks.extend(self::lacks(&self.runtime, &blueprint));
        Ok(lacks)
    }
}
