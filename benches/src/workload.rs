//! The workloads: their names, one step of each, and the amounts of data and memory.
//!
//! Workloads of a family share a data set that is loaded once per store. The family [`Family::Fresh`] has none: each
//! run begins with an empty store. Memory means everything together: caches, write buffers, the page cache of the system.

use crate::data::{Key, key, sorted_key};
use crate::error::{Error, Result};

/// The data of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// None: it writes its own.
    Fresh,
    /// Fits into memory, and is only read.
    Hot,
    /// Several times the memory, and only read.
    Cold,
    /// Fits into memory; read and written.
    Ycsb,
    /// Several times the memory, and overwritten.
    Overwrite,
}

/// The parts of a mixed workload, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Gets.
    pub reads: u64,
    /// Puts of existing keys.
    pub updates: u64,
    /// Gets followed by a put of the same key.
    pub read_modify_writes: u64,
    /// Scans of 1 to 100 records.
    pub scans: u64,
    // The rest are puts of new keys.
}

/// One step of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Puts a new key.
    Put,
    /// Puts a batch of new keys atomically.
    Load,
    /// The same, with each key above all before it.
    LoadSorted,
    /// Gets a key that is there.
    Get,
    /// Gets a key that is not there.
    GetMissing,
    /// Gets many keys that are there, in one call where the store has one.
    MultiGet,
    /// Gets a key that is there, with many such gets under way from one thread where the store has gets that do not wait.
    GetAsync,
    /// Walks over 100 records from a random one.
    ScanShort,
    /// Walks over everything.
    ScanAll,
    /// A step of YCSB, keys drawn by a Zipf distribution.
    Ycsb(Mix),
    /// Puts an existing key.
    Overwrite,
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// Its data.
    pub family: Family,
    /// Its step.
    pub step: Step,
    /// Its threads.
    pub threads: u16,
    /// Length of each value.
    pub value_bytes: usize,
    /// The unit of `ops_per_s`.
    pub unit: &'static str,
    /// The ratio to the best rival that Esker is meant to reach.
    pub goal: f64,
}

/// Times of a run, as multiples of the requested length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// The warm-up,
    pub warm_up: f64,
    /// the timed part at least,
    pub at_least: f64,
    /// and at most, where a number of bytes is to be written.
    pub at_most: f64,
}

/// Reads that one thread has in flight, where a store permits that: in a call of `multi_get`, or by gets that do not wait.
pub const READS_IN_FLIGHT: usize = 64;

/// Records in a batch of the load.
pub const BATCH_RECORDS: usize = 1000;

/// Records in a short scan.
pub const SCAN_RECORDS: usize = 100;

const fn mix(reads: u64, updates: u64, read_modify_writes: u64, scans: u64) -> Step {
    Step::Ycsb(Mix { reads, updates, read_modify_writes, scans })
}

const fn workload(name: &'static str, step: Step, threads: u16, goal: f64) -> Workload {
    let family = match step {
        Step::Put | Step::Load | Step::LoadSorted => Family::Fresh,
        Step::Ycsb(_) => Family::Ycsb,
        Step::Overwrite => Family::Overwrite,
        _ => Family::Hot,
    };
    let value_bytes = match family {
        Family::Ycsb => 1024,
        Family::Overwrite => 400,
        _ => 100,
    };
    let unit = match step {
        Step::Put | Step::Overwrite => "puts",
        Step::Load | Step::LoadSorted => "records",
        Step::Get | Step::GetMissing | Step::GetAsync => "gets",
        Step::MultiGet => "keys",
        Step::ScanShort => "scans",
        Step::ScanAll => "pairs",
        Step::Ycsb(_) => "operations",
    };
    Workload { name, family, step, threads, value_bytes, unit, goal }
}

const fn cold(name: &'static str, step: Step, threads: u16) -> Workload {
    Workload { family: Family::Cold, value_bytes: 400, ..workload(name, step, threads, 1.0) }
}

/// All workloads, in the order in which they run.
pub const ALL: [Workload; 24] = [
    workload("durable_put/1", Step::Put, 1, 1.0),
    workload("durable_put/8", Step::Put, 8, 1.5),
    workload("durable_put/64", Step::Put, 64, 2.0),
    workload("put/1", Step::Put, 1, 2.5),
    workload("put/4", Step::Put, 4, 3.0),
    workload("load", Step::Load, 1, 2.5),
    workload("load_sorted", Step::LoadSorted, 1, 3.0),
    workload("get_hot/1", Step::Get, 1, 1.5),
    workload("get_hot/4", Step::Get, 4, 1.5),
    workload("get_missing", Step::GetMissing, 1, 1.5),
    workload("multi_get", Step::MultiGet, 1, 1.5),
    workload("scan_100", Step::ScanShort, 1, 1.5),
    workload("scan_all", Step::ScanAll, 1, 2.0),
    cold("get_cold/1", Step::Get, 1),
    cold("get_cold/8", Step::Get, 8),
    cold("get_cold/32", Step::Get, 32),
    cold("multi_get_cold", Step::MultiGet, 1),
    cold("get_async_cold", Step::GetAsync, 1),
    workload("ycsb_a", mix(50, 50, 0, 0), 4, 2.0),
    workload("ycsb_b", mix(95, 5, 0, 0), 4, 2.0),
    workload("ycsb_c", mix(100, 0, 0, 0), 4, 1.25),
    workload("ycsb_e", mix(0, 0, 0, 95), 4, 1.5),
    workload("ycsb_f", mix(50, 0, 50, 0), 4, 2.0),
    workload("overwrite", Step::Overwrite, 2, 2.5),
];

impl Workload {
    /// The workload of this name.
    pub fn named(name: &str) -> Option<Workload> {
        ALL.into_iter().find(|workload| workload.name == name)
    }

    /// Reads that a store can have in flight at once.
    pub fn depth(&self) -> usize {
        match self.step {
            Step::MultiGet | Step::GetAsync => READS_IN_FLIGHT,
            _ => usize::from(self.threads),
        }
    }

    /// Keys in a call of `multi_get`. For data on the device several times as many as are read at once, because a call ends
    /// with its slowest read.
    pub fn keys_in_call(&self) -> usize {
        if self.family == Family::Cold { 1024 } else { 64 }
    }

    /// Whether every put must survive a loss of power before it returns.
    pub fn is_durable(&self) -> bool {
        self.name.starts_with("durable_put")
    }

    /// Whether it writes at all.
    pub fn writes(&self) -> bool {
        match self.step {
            Step::Ycsb(mix) => mix.reads < 100,
            _ => matches!(self.family, Family::Fresh | Family::Overwrite),
        }
    }

    /// How long a run is.
    pub fn lengths(&self) -> Lengths {
        let (at_least, at_most) = match self.step {
            // Pauses show only over time.
            Step::Overwrite => (4.0, 12.0),
            _ if self.fills_memory() => (1.0, 3.0),
            _ => (1.0, 1.0),
        };
        let warm_up = match self.family {
            Family::Fresh | Family::Overwrite => 0.0,
            Family::Hot | Family::Ycsb => 0.25,
            Family::Cold => 0.5,
        };
        Lengths { warm_up, at_least, at_most }
    }

    /// Whether it must write several times the memory, so that it does not only fill buffers.
    pub fn fills_memory(&self) -> bool {
        !self.is_durable() && matches!(self.family, Family::Fresh | Family::Overwrite)
    }

    /// The key of record `number`.
    pub fn key(&self, number: u64) -> Key {
        if self.step == Step::LoadSorted { sorted_key(number) } else { key(number) }
    }
}

/// The workloads in a comma list of names, in the order of [`ALL`]; `all` for all.
///
/// # Errors
/// A name is unknown.
pub fn parse(list: &str) -> Result<Vec<Workload>> {
    let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.contains(&"all") {
        return Ok(ALL.to_vec());
    }
    for name in &names {
        if Workload::named(name).is_none() {
            let known: Vec<_> = ALL.iter().map(|workload| workload.name).collect();
            return Err(Error::Usage(format!("no workload `{name}`; there are: {}, all", known.join(", "))));
        }
    }
    if names.is_empty() {
        return Err(Error::Usage("no workloads named".to_owned()));
    }
    Ok(ALL.into_iter().filter(|workload| names.contains(&workload.name)).collect())
}

/// The amount of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Records of the data set; 0 for [`Family::Fresh`].
    pub records: u64,
    /// Memory for the whole process and its page cache, in bytes.
    pub memory_bytes: u64,
}

/// How thorough a comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// For a report.
    Full,
    /// A first impression.
    Quick,
    /// A second or so, to see that it works.
    Smoke,
}

impl Size {
    /// Records and memory of a family. Only the ratio of data to memory matters for the figures. Memory is small, so that
    /// several times of it are written and read in the available time. With 64 MiB, Esker and redb
    /// were killed by the limit under overwrites.
    pub fn scale(self, family: Family) -> Scale {
        let (records, memory_mib) = match (self, family) {
            (_, Family::Fresh) => (0, 64),
            (Size::Full, Family::Hot) => (2_000_000, 1024),
            (Size::Full, Family::Cold | Family::Overwrite) => (1_300_000, 128),
            (Size::Full, Family::Ycsb) => (200_000, 768),
            (Size::Quick, Family::Hot) => (300_000, 512),
            (Size::Quick, Family::Cold) => (720_000, 96),
            (Size::Quick, Family::Ycsb) => (50_000, 512),
            (Size::Quick, Family::Overwrite) => (700_000, 128),
            (Size::Smoke, Family::Cold) => (40_000, 64),
            (Size::Smoke, _) => (20_000, 128),
        };
        Scale { records, memory_bytes: memory_mib << 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_in_order_and_an_unknown_name_is_refused() {
        let names =
            |list| parse(list).map(|all| all.iter().map(|workload| workload.name).collect::<Vec<_>>());
        assert_eq!(names("overwrite, put/1").ok(), Some(vec!["put/1", "overwrite"]));
        assert_eq!(names("all").map(|names| names.len()).ok(), Some(24));
        let error = names("put/1,put/3").expect_err("there is no put/3").to_string();
        assert!(error.contains("`put/3`"), "{error}");
        assert!(error.contains("durable_put/64"), "{error}");
        assert!(parse(",").is_err());
    }

    #[test]
    fn data_that_must_not_fit_are_four_times_the_memory() {
        let scale = Size::Full.scale(Family::Cold);
        assert!(scale.records * 416 >= 4 * scale.memory_bytes);
        let scale = Size::Full.scale(Family::Overwrite);
        assert!(scale.records * 416 >= 4 * scale.memory_bytes);
    }
}
