//! Operations from the input, on a store and on a sorted map at once; every answer must be the same.
//!
//! Closes, deaths of the process and power cuts are operations, too. After a death everything acknowledged is there. After
//! a power cut it is some state between the last one acknowledged for power and the newest.

use std::collections::BTreeMap;
use std::rc::Rc;

use aio::SimBackend;
use esker::testing::DbExt;
use esker::{Db, Durability, Keyspace, Snapshot};

use crate::input::Input;
use crate::specimen::{NAMES, ROOT, builder};

/// A sorted map for each keyspace.
type Tables = [BTreeMap<Vec<u8>, Vec<u8>>; 2];

/// Operations in one input.
const MOST_OPERATIONS: usize = 64;

struct World {
    sim: SimBackend,
    compress: bool,
    db: Option<Db>,
    keyspaces: Vec<Keyspace>,
    /// The states after each commit that a power cut may take back, newest last. The first one is safe.
    states: Vec<Rc<Tables>>,
    /// The content that a snapshot must keep showing.
    held: Option<(Snapshot, Rc<Tables>)>,
}

/// Runs the operations of the input.
pub(crate) fn model(data: &[u8]) {
    let mut input = Input(data);
    let way = input.u8();
    let mut world = World {
        sim: SimBackend::new(u64::from(way)),
        compress: way & 1 == 1,
        db: None,
        keyspaces: Vec::new(),
        states: vec![Rc::default()],
        held: None,
    };
    world.open();
    for _ in 0..MOST_OPERATIONS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.compare();
    world.db().verify().expect("an undamaged store is sound");
    world.reopen();
    world.compare();
    world.sim.crash();
}

fn key(byte: u8) -> Vec<u8> {
    let mut key = vec![b'a' + byte % 4; 1 + usize::from(byte / 64)];
    key.push(byte % 16);
    key
}

fn value(byte: u8, nth: usize) -> Vec<u8> {
    let low = |at: usize| u8::try_from(at % 256).expect("a byte");
    let len = [0, 3, 40, 700][usize::from(byte % 4)];
    let twist = |at: usize| if byte & 4 == 0 { 0 } else { low(at).wrapping_mul(167) };
    (0..len).map(|at| byte.wrapping_add(twist(at))).chain([low(nth)]).collect()
}

impl World {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("it is open between operations")
    }

    fn now(&self) -> &Rc<Tables> {
        self.states.last().expect("there is always one")
    }

    fn open(&mut self) {
        self.sim.stop_tracing();
        let db = builder(&self.sim, self.compress).open(ROOT).expect("the store opens");
        self.keyspaces = NAMES.map(|name| db.keyspace(name).expect("a keyspace")).into();
        self.db = Some(db);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (what, byte) = (input.u8(), input.u8());
        let side = usize::from(what >> 5 & 1);
        let level = if what & 64 == 0 { Durability::Process } else { Durability::Power };
        match what & 31 {
            0..=9 => self.write(&[(side, byte, Some(input.u8()))], level),
            10..=12 => self.write(&[(side, byte, None)], level),
            13 | 14 => {
                let writes: Vec<_> = (0..byte % 6)
                    .map(|_| (usize::from(input.u8() & 1), input.u8(), Some(input.u8())))
                    .collect();
                self.write(&writes, level);
            }
            15 | 16 => self.get(side, byte),
            17 | 18 => self.range(side, &key(byte), &key(input.u8()), what & 64 == 0),
            19 => self.db().flush().expect("a flush"),
            20 => self.db().compact().expect("a compaction"),
            21 => self.db().freeze().expect("a freeze"),
            22 => {
                self.db().sync().expect("a sync");
                self.states.drain(..self.states.len() - 1);
            }
            23 => self.held = Some((self.db().snapshot(), Rc::clone(self.now()))),
            24 => self.look_back(side, byte),
            25 => self.many(side, byte),
            26 => self.reopen(),
            27 => self.die(u64::from(byte), false),
            28 => self.die(u64::from(byte), true),
            29 => self.ends(side),
            _ => self.compare(),
        }
    }

    fn write(&mut self, writes: &[(usize, u8, Option<u8>)], level: Durability) {
        let mut tables = Tables::clone(self.now());
        let mut batch = self.db().batch();
        batch.durability(level);
        for (side, byte, put) in writes {
            let key = key(*byte);
            if let Some(put) = put {
                let value = value(*put, self.states.len());
                batch.put(&self.keyspaces[*side], &key, &value);
                tables[*side].insert(key, value);
            } else {
                batch.delete(&self.keyspaces[*side], &key);
                tables[*side].remove(&key);
            }
        }
        batch.commit().expect("a batch is written");
        self.states.push(Rc::new(tables));
        // An empty batch acknowledges nothing.
        if level == Durability::Power && !writes.is_empty() {
            self.states.drain(..self.states.len() - 1);
        }
    }

    fn get(&self, side: usize, byte: u8) {
        let (key, table) = (key(byte), &self.now()[side]);
        let found = self.keyspaces[side].get(&key).expect("a read");
        assert_eq!(found.as_deref(), table.get(&key).map(Vec::as_slice), "{key:?}");
        assert_eq!(self.keyspaces[side].contains_key(&key).expect("a read"), table.contains_key(&key));
    }

    fn range(&self, side: usize, from: &[u8], to: &[u8], forwards: bool) {
        let iter = self.keyspaces[side].range(from..to);
        let found: esker::Result<Vec<_>> = if forwards { iter.collect() } else { iter.rev().collect() };
        let mut found = found.expect("a scan");
        if !forwards {
            found.reverse();
        }
        let inside = self.now()[side].iter().filter(|(key, _)| key.as_slice() >= from && key.as_slice() < to);
        assert!(
            inside
                .map(|(key, value)| (&key[..], &value[..]))
                .eq(found.iter().map(|(key, value)| (&key[..], &value[..]))),
            "{from:?}..{to:?} gives {found:?}"
        );
    }

    fn look_back(&self, side: usize, byte: u8) {
        let Some((snapshot, tables)) = &self.held else { return };
        let key = key(byte);
        let found = snapshot.get(&self.keyspaces[side], &key).expect("a read");
        assert_eq!(found.as_deref(), tables[side].get(&key).map(Vec::as_slice), "{key:?} of a snapshot");
        same(snapshot.iter(&self.keyspaces[side]), &tables[side]);
    }

    fn many(&self, side: usize, byte: u8) {
        let keys: Vec<_> = (0..12_u8).map(|nth| key(byte.wrapping_add(nth * 21))).collect();
        let found = self.keyspaces[side].multi_get(&keys).expect("a read");
        for (key, value) in keys.iter().zip(found) {
            assert_eq!(value.as_deref(), self.now()[side].get(key).map(Vec::as_slice), "{key:?} of many");
        }
    }

    fn ends(&self, side: usize) {
        let pair = |pair: Option<(_, _)>| pair.map(|(key, value): (_, _)| (Vec::from(key), Vec::from(value)));
        let own = |pair: Option<(&Vec<u8>, &Vec<u8>)>| pair.map(|(key, value)| (key.clone(), value.clone()));
        let (keyspace, table) = (&self.keyspaces[side], &self.now()[side]);
        assert_eq!(pair(keyspace.first().expect("a read")), own(table.first_key_value()));
        assert_eq!(pair(keyspace.last().expect("a read")), own(table.last_key_value()));
    }

    fn close_handles(&mut self) {
        self.held = None;
        self.keyspaces.clear();
    }

    fn reopen(&mut self) {
        self.close_handles();
        self.db.take().expect("it is open").close().expect("a close");
        self.states.drain(..self.states.len() - 1);
        self.open();
    }

    fn die(&mut self, seed: u64, power_cut: bool) {
        let disk = self.sim.snapshot();
        self.sim.crash();
        self.close_handles();
        drop(self.db.take());
        let disk = if power_cut { disk.power_cut_random(seed) } else { disk.process_crash(seed) };
        self.sim = SimBackend::from_image(disk, seed);
        self.open();
        if power_cut {
            let found = self.contents();
            let state = self.states.iter().rev().find(|tables| ***tables == found);
            let state =
                Rc::clone(state.unwrap_or_else(|| panic!("after a power cut no state fits: {found:?}")));
            self.states = vec![state];
        }
        self.compare();
    }

    fn contents(&self) -> Tables {
        [0, 1].map(|side| {
            let all = self.keyspaces[side]
                .iter()
                .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
            all.collect::<esker::Result<_>>().expect("a scan")
        })
    }

    fn compare(&self) {
        for (keyspace, table) in self.keyspaces.iter().zip(&**self.now()) {
            same(keyspace.iter(), table);
        }
    }
}

/// Forwards and backwards.
fn same(iter: esker::Iter, table: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut iter = iter;
    let mut from_both_ends = table.iter();
    loop {
        let (front, expected) = (iter.next_ref().expect("a scan"), from_both_ends.next());
        assert_eq!(front, expected.map(|(key, value)| (&key[..], &value[..])));
        if front.is_none() {
            break;
        }
        let (back, expected) = (iter.next_back_ref().expect("a scan"), from_both_ends.next_back());
        assert_eq!(back, expected.map(|(key, value)| (&key[..], &value[..])));
    }
}
