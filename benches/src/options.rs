//! The options of a comparison.

use std::path::PathBuf;

use crate::store::Kind;
use crate::workload::{Size, Workload};

/// The compared stores and workloads, and the conditions.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stores, in the order of their turns.
    pub stores: Vec<Kind>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Where the results go.
    pub out: PathBuf,
    /// Where the stores stand during the comparison.
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
