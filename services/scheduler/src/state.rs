//! What the loops share.

use crate::Config;
use bus::Bus;
use compute::Compute;
use eventstore::Store;
use kit::keys::Keys;
use std::sync::Arc;
use tokio::sync::Notify;

pub struct State {
    pub bus: Bus,
    pub store: Store,
    pub keys: Keys,
    pub compute: Arc<dyn Compute>,
    pub config: Config,
    /// Placements may be wanted.
    pub wanted: Notify,
    /// Placements may have to be ended.
    pub ending: Notify,
}
