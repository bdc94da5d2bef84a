//! What stands between a tree and the world while the tree is frozen.

/// Why a barrier could not be raised or lowered.
pub type BarrierError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps what the world sends from a tree, for later: the lock on a container's network.
pub trait Barrier {
    /// Raises it. Does nothing when it is raised.
    ///
    /// # Errors
    /// When that fails; it is lowered then.
    fn raise(&mut self) -> Result<(), BarrierError>;

    /// Lowers it, and delivers what came meanwhile. Does nothing when it is lowered.
    ///
    /// # Errors
    /// When that fails; it may be raised then.
    fn lower(&mut self) -> Result<(), BarrierError>;
}

/// For a tree that nothing is kept from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open;

impl Barrier for Open {
    fn raise(&mut self) -> Result<(), BarrierError> {
        Ok(())
    }

    fn lower(&mut self) -> Result<(), BarrierError> {
        Ok(())
    }
}
