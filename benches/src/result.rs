//! The result of a run: a row for the tables, details for the pictures.

use serde::{Deserialize, Serialize};

/// One run of one workload on one store; a line of `results.jsonl`. Bytes per user byte are over the timed part, whose
/// user bytes are keys and values written; 0 for workloads that only read. CPU is of the whole process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the store; `device` for raw loops on the device.
    pub store: String,
    /// Name of the workload.
    pub workload: String,
    /// Threads that drive the store; for raw reads the depth of the queue.
    pub threads: u16,
    /// Length of each value.
    pub value_bytes: usize,
    /// Operations in a second, a final sync included.
    pub ops_per_s: f64,
    /// Latency of a step in microseconds: half of the steps took at most this long.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// All.
    pub max_us: f64,
    /// CPU time of the process for one operation, in microseconds.
    pub cpu_us_per_op: f64,
    /// Bytes written directly or made dirty in the page cache, for each user byte.
    pub bytes_dirtied_per_user_byte: f64,
    /// Bytes that all processes of the machine wrote to the device, for each user byte.
    pub device_bytes_per_user_byte: f64,
    /// Bytes of the store's files on the device, for each byte of live keys and values.
    pub space_per_user_byte: f64,
    /// The most memory that the process held, mapped files included.
    pub peak_rss_bytes: u64,
    /// Part of all CPUs that other processes used during the run, 0 to 1.
    pub foreign_cpu: f64,
}

/// A row with the data that do not fit into a table; a line of `details.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The row.
    pub row: Row,
    /// The repetition, from 1.
    pub round: u32,
    /// Length of the timed part in seconds, the final sync included.
    pub seconds: f64,
    /// The final sync alone, in seconds.
    pub final_sync_seconds: f64,
    /// Bytes of keys and values written in the timed part.
    pub user_bytes: u64,
    /// Anything that a reader must know about this run.
    pub notes: Vec<String>,
    /// Latency in microseconds at each of [`QUANTILES`].
    pub latency_us: Vec<f64>,
    /// The longest step that ended in each tenth of a second, in microseconds.
    pub pauses_us: Vec<f64>,
}

/// Where the latency curve is sampled.
pub const QUANTILES: [f64; 12] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

/// Above this part of foreign CPU a row is marked.
pub const FOREIGN_LIMIT: f64 = 0.1;
