//! The open store in memory: its keyspaces, the tables and runs of each, and the positions that readers pin.

pub(crate) mod piece;
pub(crate) mod pins;
pub(crate) mod run;
pub(crate) mod scan;
pub(crate) mod store;
pub(crate) mod superversion;
pub(crate) mod writing;
pub(crate) mod zones;
