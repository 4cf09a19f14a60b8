//! Tests of `kvtool` as a user runs it, in one program. The rules of the house, which need nothing built, stand beside
//! this folder.
#![forbid(unsafe_code)]

mod cli;
mod machine;
mod support;
mod system_calls;
