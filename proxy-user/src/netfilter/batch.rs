//! Transactions of nftables: what is to be made and deleted, done all at once or not at all.
//!
//! Order counts: a chain before its rules, a set before the rules that name it and before its
//! elements.

use super::set::{Interval, Set};
use super::wire::{Head, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Writer};
use super::{Expr, Family, NFTABLES};
use std::fmt;

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`, as the frame of a batch names it.
const SUBSYSTEM: u16 = 10;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const DESTROYSETELEM: u16 = 30;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(super) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;

/// A list of elements is one attribute, which must be shorter than 64 KiB. An element takes at most
/// 2 × (64 + 8) + 16 bytes.
const LIST: usize = 64_000;

/// The name of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Table {
    /// What packets it sees.
    pub family: Family,
    /// Its name, of at most 255 bytes.
    pub name: String,
}

/// Where packets come to a base chain (`NF_INET_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are nft's")]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What a base chain may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainKind {
    /// Anything but NAT, to every packet.
    Filter,
    /// NAT; it sees the first packet of each connection only.
    Nat,
    /// At `output`: packets are routed again if they were changed.
    Route,
}

/// What becomes of packets that no rule of a base chain decides on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are nft's")]
pub enum Policy {
    Drop = 0,
    Accept = 1,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// What makes it a base chain: its kind, where it is, when its turn is (lower ones come first),
    /// and its policy. Without it only other chains lead there.
    pub base: Option<(ChainKind, Hook, i32, Policy)>,
}

/// A rule, behind those that the chain has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// Its steps, in order.
    pub exprs: Vec<Expr>,
    /// What nft prints behind it; of at most 120 bytes, or empty.
    pub comment: String,
}

/// A transaction in the making. Nothing is done before [`super::Socket::commit`].
pub struct Batch {
    writer: Writer,
    /// What each message does, in order; the frame's beginning is the message 0.
    labels: Vec<String>,
    sets: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), labels: Vec::new(), sets: 0 };
        batch.frame(NFNL_MSG_BATCH_BEGIN);
        batch.labels.push("carry out the transaction".to_owned());
        batch
    }

    /// How many bytes it has. The kernel copies them; at some millions, a caller with many elements
    /// should commit what there is and begin the next.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    /// Whether it would do nothing.
    pub fn is_empty(&self) -> bool {
        self.labels.len() == 1
    }

    /// Makes a table, if it is not there. `comment`, of at most 120 bytes, is kept from when it was
    /// made.
    pub fn add_table(&mut self, table: &Table, comment: &str) {
        self.add(NEWTABLE, 0, table, format!("add {table}"), |w| {
            w.text(1, &table.name);
            w.word(2, 0);
            if !comment.is_empty() {
                w.bytes(6, &user_data(comment));
            }
        });
    }

    /// Deletes a table with all that is in it, if it is there.
    pub fn destroy_table(&mut self, table: &Table) {
        // Kernels before 6.3 only delete what is there.
        self.add_table(table, "");
        self.add(DELTABLE, 0, table, format!("delete {table}"), |w| w.text(1, &table.name));
    }

    /// Makes a chain, if it is not there.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        let what = format!("add chain {} to {table}", chain.name);
        self.add(NEWCHAIN, NLM_F_CREATE, table, what, |w| {
            w.text(1, &table.name);
            w.text(3, &chain.name);
            if let Some((kind, hook, priority, policy)) = chain.base {
                w.nest(4, |w| {
                    w.word(1, hook as u32);
                    w.word(2, priority.cast_unsigned());
                });
                w.word(5, policy as u32);
                w.text(7, kind.name());
            }
        });
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.add(DELRULE, 0, table, format!("flush chain {chain} of {table}"), |w| {
            w.text(1, &table.name);
            w.text(2, chain);
        });
    }

    /// Puts a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let quoted = if rule.comment.is_empty() { "" } else { " " };
        let what = format!("add rule{quoted}{} to chain {chain} of {table}", rule.comment);
        self.add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table, what, |w| {
            w.text(1, &table.name);
            w.text(2, chain);
            w.nest(4, |w| rule.exprs.iter().for_each(|expr| expr.write(w)));
            if !rule.comment.is_empty() {
                w.bytes(7, &user_data(&rule.comment));
            }
        });
    }

    /// Makes a set or a map, if it is not there.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.sets += 1;
        let id = self.sets;
        self.add(NEWSET, NLM_F_CREATE, table, format!("add set {} to {table}", set.name), |w| {
            set.write(w, &table.name, id);
        });
    }

    /// Deletes the elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.add(DELSETELEM, 0, table, format!("flush set {set} of {table}"), |w| {
            w.text(NFTA_SET_ELEM_LIST_TABLE, &table.name);
            w.text(NFTA_SET_ELEM_LIST_SET, set);
        });
    }

    /// Puts pairs of keys and values into a map. The kernel takes a pair that is there already, and
    /// refuses with `EBUSY` if the key is there with another value: delete it first, in the same
    /// transaction.
    pub fn add_pairs<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        table: &Table,
        map: &str,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) {
        self.elements(Change::Add, table, map, pairs, |w, (key, value)| {
            w.nest(NFTA_LIST_ELEM, |w| {
                element_key(w, key.as_ref());
                w.nest(NFTA_SET_ELEM_DATA, |w| w.bytes(NFTA_DATA_VALUE, value.as_ref()));
            });
        });
    }

    /// Puts keys into a set.
    pub fn add_keys<K: AsRef<[u8]>>(
        &mut self,
        table: &Table,
        set: &str,
        keys: impl IntoIterator<Item = K>,
    ) {
        self.keys(Change::Add, table, set, keys);
    }

    /// Deletes keys, and what a map has for them. If one is not there the kernel refuses the
    /// transaction with `ENOENT`.
    pub fn delete_keys<K: AsRef<[u8]>>(
        &mut self,
        table: &Table,
        set: &str,
        keys: impl IntoIterator<Item = K>,
    ) {
        self.keys(Change::Delete, table, set, keys);
    }

    /// Deletes those of the keys that are there. Kernels before 6.3 refuse it with `EINVAL`.
    pub fn destroy_keys<K: AsRef<[u8]>>(
        &mut self,
        table: &Table,
        set: &str,
        keys: impl IntoIterator<Item = K>,
    ) {
        self.keys(Change::Destroy, table, set, keys);
    }

    /// Puts intervals into a set of intervals. They must neither overlap nor touch each other's
    /// keys; the kernel refuses the first with `EEXIST` or `ENOTEMPTY`.
    pub fn add_intervals(
        &mut self,
        table: &Table,
        set: &str,
        intervals: impl IntoIterator<Item = Interval>,
    ) {
        self.elements(Change::Add, table, set, intervals, write_interval);
    }

    /// Deletes intervals of a set of intervals.
    pub fn delete_intervals(
        &mut self,
        table: &Table,
        set: &str,
        intervals: impl IntoIterator<Item = Interval>,
    ) {
        self.elements(Change::Delete, table, set, intervals, write_interval);
    }

    fn keys<K: AsRef<[u8]>>(
        &mut self,
        change: Change,
        table: &Table,
        set: &str,
        keys: impl IntoIterator<Item = K>,
    ) {
        self.elements(change, table, set, keys, |w, key| {
            w.nest(NFTA_LIST_ELEM, |w| element_key(w, key.as_ref()));
        });
    }

    /// Writes as many messages as the elements need.
    fn elements<T>(
        &mut self,
        change: Change,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Writer, T),
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut count = 0_usize;
            let label = self.labels.len();
            self.add(change.message(), change.flags(), table, String::new(), |w| {
                w.text(NFTA_SET_ELEM_LIST_TABLE, &table.name);
                w.text(NFTA_SET_ELEM_LIST_SET, set);
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    let start = w.len();
                    while w.len() - start < LIST
                        && let Some(element) = elements.next()
                    {
                        write(w, element);
                        count += 1;
                    }
                });
            });
            self.labels[label] = format!("{change} {count} elements of set {set} of {table}");
        }
    }

    fn add(
        &mut self,
        message: u16,
        flags: u16,
        table: &Table,
        label: String,
        body: impl FnOnce(&mut Writer),
    ) {
        let head = Head {
            kind: NFTABLES | message,
            flags: NLM_F_REQUEST | flags,
            sequence: self.labels.len() as u32,
            family: table.family.number(),
            resource: 0,
        };
        self.labels.push(label);
        self.writer.message(head, body);
    }

    fn frame(&mut self, kind: u16) {
        let sequence = self.labels.len() as u32;
        let head = Head { kind, flags: NLM_F_REQUEST, sequence, family: 0, resource: SUBSYSTEM };
        self.writer.message(head, |_| ());
    }

    /// The bytes to be sent, in one call.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.frame(NFNL_MSG_BATCH_END);
        self.writer.as_slice()
    }

    /// What the message of that number does.
    pub(super) fn label(&self, sequence: u32) -> &str {
        self.labels.get(sequence as usize).map_or("carry out the transaction", String::as_str)
    }
}

/// What is done with elements.
#[derive(Clone, Copy)]
enum Change {
    Add,
    Delete,
    Destroy,
}

impl Change {
    const fn message(self) -> u16 {
        match self {
            Self::Add => NEWSETELEM,
            Self::Delete => DELSETELEM,
            Self::Destroy => DESTROYSETELEM,
        }
    }

    const fn flags(self) -> u16 {
        match self {
            Self::Add => NLM_F_CREATE,
            Self::Delete | Self::Destroy => 0,
        }
    }
}

impl ChainKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

fn element_key(writer: &mut Writer, key: &[u8]) {
    writer.nest(NFTA_SET_ELEM_KEY, |w| w.bytes(NFTA_DATA_VALUE, key));
}

/// Writes the two elements of an interval: its first key, and the first one behind it.
fn write_interval(writer: &mut Writer, interval: Interval) {
    writer.nest(NFTA_LIST_ELEM, |w| element_key(w, interval.first.as_ref()));
    if let Some(end) = interval.end {
        writer.nest(NFTA_LIST_ELEM, |w| {
            w.word(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            element_key(w, end.as_ref());
        });
    }
}

/// A comment as nft writes it: a type (`NFTNL_UDATA_RULE_COMMENT`, and the same for tables), a
/// length, and the text with a zero.
fn user_data(comment: &str) -> Vec<u8> {
    let mut data = vec![0, (comment.len() + 1) as u8];
    data.extend(comment.as_bytes());
    data.push(0);
    data
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}", self.family, self.name)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Delete => "delete",
            Self::Destroy => "destroy",
        })
    }
}
