//! What a comparison is asked to do.

use std::path::PathBuf;

use crate::store::Kind;
use crate::workload::{Size, Workload};

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores, in the order of their turns.
    pub stores: Vec<Kind>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Where the results go.
    pub out: PathBuf,
    /// Where the stores stand meanwhile.
    pub dir: PathBuf,
    /// Repetitions.
    pub rounds: u32,
    /// Seconds of each run at least, as long as there is time for that.
    pub seconds: f64,
    /// Minutes that all of it takes at most.
    pub minutes: f64,
    /// How large the data are.
    pub size: Size,
}
