//! The stores: one file for each, each behind a feature of its own but for Esker.

use crate::error::{Error, Result};
use crate::store::Kind;

mod esker;

#[cfg(feature = "peer-canopydb")]
mod canopydb;
#[cfg(feature = "peer-fjall")]
mod fjall;
#[cfg(feature = "peer-lmdb")]
mod lmdb;
#[cfg(feature = "peer-redb")]
mod redb;
#[cfg(feature = "peer-rocksdb")]
mod rocksdb;
#[cfg(feature = "peer-surrealkv")]
mod surrealkv;

/// The stores that were compiled in, with the names of those that were not.
pub fn all() -> Vec<std::result::Result<Kind, (&'static str, &'static str)>> {
    vec![
        Ok(esker::KIND),
        #[cfg(feature = "peer-fjall")]
        Ok(fjall::KIND),
        #[cfg(not(feature = "peer-fjall"))]
        Err(("fjall", "peer-fjall")),
        #[cfg(feature = "peer-redb")]
        Ok(redb::KIND),
        #[cfg(not(feature = "peer-redb"))]
        Err(("redb", "peer-redb")),
        #[cfg(feature = "peer-lmdb")]
        Ok(lmdb::KIND),
        #[cfg(not(feature = "peer-lmdb"))]
        Err(("lmdb", "peer-lmdb")),
        #[cfg(feature = "peer-surrealkv")]
        Ok(surrealkv::KIND),
        #[cfg(not(feature = "peer-surrealkv"))]
        Err(("surrealkv", "peer-surrealkv")),
        #[cfg(feature = "peer-rocksdb")]
        Ok(rocksdb::KIND),
        #[cfg(not(feature = "peer-rocksdb"))]
        Err(("rocksdb", "peer-rocksdb")),
        #[cfg(feature = "peer-canopydb")]
        Ok(canopydb::KIND),
        #[cfg(not(feature = "peer-canopydb"))]
        Err(("canopydb", "peer-canopydb")),
    ]
}

/// The store of this name.
///
/// # Errors
/// It is unknown, or was not compiled in.
pub fn named(name: &str) -> Result<Kind> {
    let mut known = Vec::new();
    for kind in all() {
        match kind {
            Ok(kind) if kind.name == name => return Ok(kind),
            Err((missing, feature)) if missing == name => {
                return Err(Error::Usage(format!(
                    "store `{name}` was not compiled in: run with `--features {feature}`"
                )));
            }
            Ok(kind) => known.push(kind.name),
            Err((missing, _)) => known.push(missing),
        }
    }
    Err(Error::Usage(format!("no store `{name}`; there are: {}", known.join(", "))))
}

/// The stores in a comma list of names, in the order of the list.
///
/// # Errors
/// A name is unknown, named twice, or was not compiled in.
pub fn parse(list: &str) -> Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if kinds.iter().any(|kind| kind.name == name) {
            return Err(Error::Usage(format!("store `{name}` is named twice")));
        }
        kinds.push(named(name)?);
    }
    if kinds.is_empty() {
        return Err(Error::Usage("no stores named".to_owned()));
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_store_is_refused_by_name() {
        let error = parse("esker,oracle").expect_err("no such store").to_string();
        assert!(error.contains("`oracle`"), "{error}");
        assert!(error.contains("surrealkv"), "{error}");
        assert!(parse("esker,esker").is_err());
        assert!(parse("").is_err());
    }

    #[cfg(not(feature = "peer-rocksdb"))]
    #[test]
    fn a_store_that_was_not_compiled_in_names_its_feature() {
        let error = parse("rocksdb").expect_err("not compiled in").to_string();
        assert!(error.contains("--features peer-rocksdb"), "{error}");
    }
}
