//! Records on disk: what the daemon must know again after it died at any instruction.
//!
//! One file per pod and per container, replaced by rename, written **before** the effect that it describes.
//! Nothing here is synced: the records have to survive the daemon, not the machine; after a reboot all that they
//! describe is dead, and a record that power loss tore is found by its checksum and reported.

mod record;
mod store;

pub use record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
pub use store::{Loaded, RecordError, RecordStore};
