//! `scan`: records in the order of their keys.

use std::ops::Bound;

use clap::Args;
use esker::Keyspace;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::render::{Out, Style};
use crate::store::{self, Common, Dir, Missing};

/// Prints records.
#[derive(Args, Debug)]
pub(crate) struct Scan {
    #[command(flatten)]
    dir: Dir,
    /// Only keys that start with this
    #[arg(long, value_name = "KEY")]
    prefix: Option<String>,
    /// Only this key and those after it
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// Only keys before this one
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// At most this many records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Print how many records there are, and nothing else
    #[arg(long, conflicts_with = "keys_only")]
    count: bool,
}

impl Scan {
    pub(crate) fn run(&self, common: &Common, out: &mut Out) -> Result<()> {
        let bounds = self.bounds(common)?;
        let db = self.dir.open(Missing::Refuse)?;
        let keyspace = store::existing(&self.dir, &db, common)?;
        let found = match (keyspace, bounds) {
            (Some(keyspace), Some(bounds)) => self.walk(&keyspace, bounds, out)?,
            _ => 0,
        };
        self.dir.map(db.close())?;
        if !self.count {
            return Ok(());
        }
        match out.style() {
            Style::Text => out.line(found.to_string()),
            Style::Json => out.table(&Map::from_iter([("count".to_owned(), Value::from(found))])),
        }
    }

    fn walk(&self, keyspace: &Keyspace, bounds: Bounds, out: &mut Out) -> Result<u64> {
        let mut iter = keyspace.range(bounds);
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut found = 0;
        while found < limit {
            let next = if self.reverse { iter.next_back() } else { iter.next() };
            let Some(record) = next else { break };
            let (key, value) = self.dir.map(record)?;
            found += 1;
            if self.keys_only {
                out.key(&key)?;
            } else if !self.count {
                out.record(&key, &value)?;
            }
        }
        Ok(found)
    }

    /// All options as one range; `None` if it is empty.
    fn bounds(&self, common: &Common) -> Result<Option<Bounds>> {
        let read = |name: &str, text: &Option<String>| {
            text.as_ref().map(|text| common.bytes(name, text)).transpose()
        };
        let (prefix, from, to) =
            (read("--prefix", &self.prefix)?, read("--from", &self.from)?, read("--to", &self.to)?);
        let end = prefix.as_deref().and_then(after_prefix);
        let low = prefix.into_iter().chain(from).max();
        let high = end.into_iter().chain(to).min();
        if let (Some(low), Some(high)) = (&low, &high)
            && low >= high
        {
            return Ok(None);
        }
        let low = low.map_or(Bound::Unbounded, Bound::Included);
        Ok(Some((low, high.map_or(Bound::Unbounded, Bound::Excluded))))
    }
}

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The smallest key after all that start with `prefix`; `None` if there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
