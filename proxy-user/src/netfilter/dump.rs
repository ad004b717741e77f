//! What nftables holds: tables, the rules of a table, and the elements of a set.
//!
//! Each list is that of one moment: the kernel says if somebody changed the rule set meanwhile, and
//! then it is read again.

use super::batch::{
    NFT_SET_ELEM_INTERVAL_END, NFTA_DATA_VALUE, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY,
};
use super::data::Data;
use super::expr::{NFTA_EXPR_DATA, NFTA_EXPR_NAME};
use super::set::Interval;
use super::set::{NFTA_SET_DATA_LEN, NFTA_SET_KEY_LEN, NFTA_SET_NAME, NFTA_SET_TABLE};
use super::socket::{ATTEMPTS, Request};
use super::wire::{Attributes, Writer};
use super::{Family, NFTABLES, NetfilterError, Socket, Table};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

const GETTABLE: u16 = NFTABLES | 1;
const GETCHAIN: u16 = NFTABLES | 4;
const GETRULE: u16 = NFTABLES | 7;
const GETSET: u16 = NFTABLES | 10;
const GETSETELEM: u16 = NFTABLES | 13;

/// A table that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableRow {
    /// Its name.
    pub table: Table,
    /// Its comment; empty if it has none.
    pub comment: String,
}

/// A rule that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleRow {
    /// The chain that it is in.
    pub chain: String,
    /// Its number, which stays while it is there.
    pub handle: u64,
    /// Its comment; empty if it has none.
    pub comment: String,
    /// A digest of its expressions, without what counts. Two lists that one process has read can be
    /// compared by it: the kernel does not give back what it was sent, but its own words for it.
    pub digest: u64,
}

/// The elements of a set or map; keys and values side by side, so that a million of them is no
/// million allocations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elements {
    key_len: usize,
    data_len: usize,
    bytes: Vec<u8>,
}

impl Elements {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Keys and values, in no order; the values of a set are empty. Compare them with those of
    /// [`super::Data`].
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.bytes.chunks_exact(self.row_len()).map(|row| row.split_at(self.key_len))
    }

    /// Whether no key is there twice.
    fn are_different(&self) -> bool {
        let mut keys: Vec<&[u8]> = self.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.windows(2).all(|pair| pair[0] != pair[1])
    }

    fn row_len(&self) -> usize {
        (self.key_len + self.data_len).max(1)
    }
}

impl Socket {
    /// The tables of both families, and no others.
    pub fn tables(&mut self) -> Result<Vec<TableRow>, NetfilterError> {
        let every = Request { kind: GETTABLE, family: 0 };
        let tables = self.collect(
            every,
            |_| (),
            |found: &mut Vec<_>, message| {
                let attributes = message.attributes();
                let family = Family::from_number(message.family());
                found.extend(family.zip(attributes.text(1)).map(|(family, name)| TableRow {
                    table: Table { family, name },
                    comment: comment(attributes.find(6)),
                }));
            },
        );
        tables.map_err(|e| NetfilterError::Kernel("list the tables of nftables".to_owned(), e))
    }

    /// The names of the chains of `table`; none if it is not there.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<String>, NetfilterError> {
        let chains = Request { kind: GETCHAIN, family: table.family.number() };
        self.collect(
            chains,
            |_| (),
            |found: &mut Vec<_>, message| {
                let attributes = message.attributes();
                if attributes.text(1).as_deref() == Some(&table.name) {
                    found.extend(attributes.text(3));
                }
            },
        )
        .map_err(|e| NetfilterError::Kernel(format!("list the chains of {table}"), e))
    }

    /// The rules of `table`, in the order of each chain; none if it is not there.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleRow>, NetfilterError> {
        let rules = Request { kind: GETRULE, family: table.family.number() };
        let rules = self.collect(
            rules,
            |w| w.text(1, &table.name),
            |found: &mut Vec<_>, message| {
                let attributes = message.attributes();
                if attributes.text(1).as_deref() == Some(&table.name) {
                    found.push(RuleRow {
                        chain: attributes.text(2).unwrap_or_default(),
                        handle: attributes.double(3).unwrap_or_default(),
                        comment: comment(attributes.find(7)),
                        digest: digest(attributes.nest(4)),
                    });
                }
            },
        );
        rules.map_err(|e| NetfilterError::Kernel(format!("list the rules of {table}"), e))
    }

    /// The elements of a set of `table` that is none of intervals.
    ///
    /// The kernel begins at the first element again for every 32 KiB of the list, so it takes 2 s
    /// of CPU for 250,000 elements and 32 s for a million. While [`Socket::generation`] says what
    /// it said, there is no need to.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Elements, NetfilterError> {
        let failed = |e| NetfilterError::Kernel(format!("list set {set} of {table}"), e);
        let name = |w: &mut Writer| {
            w.text(NFTA_SET_TABLE, &table.name);
            w.text(NFTA_SET_NAME, set);
        };
        let mut lens = (0, 0);
        self.ask(Request { kind: GETSET, family: table.family.number() }, name, |message| {
            let len = |kind| message.attributes().word(kind).unwrap_or_default() as usize;
            lens = (len(NFTA_SET_KEY_LEN), len(NFTA_SET_DATA_LEN));
        })
        .map_err(failed)?;
        let (key_len, data_len) = lens;
        for _ in 0..ATTEMPTS {
            let bytes = self.walk(table, set, |bytes: &mut Vec<u8>, key, data, _| {
                if key.len() == key_len && data.len() == data_len {
                    bytes.extend(key);
                    bytes.extend(data);
                }
            });
            let elements = Elements { key_len, data_len, bytes: bytes.map_err(failed)? };
            // The kernel's table grew meanwhile, and with it the order changed: as many elements
            // are missing as are there twice.
            if elements.are_different() {
                return Ok(elements);
            }
        }
        Err(failed(io::Error::other("the kernel's table grows while it is read")))
    }

    /// The intervals of a set of intervals of `table`, in order.
    pub fn intervals(&mut self, table: &Table, set: &str) -> Result<Vec<Interval>, NetfilterError> {
        let ends = self.walk(table, set, |ends: &mut Vec<_>, key, _, flags| {
            ends.push((Data::from_bytes(key), flags & NFT_SET_ELEM_INTERVAL_END == 0));
        });
        let mut ends =
            ends.map_err(|e| NetfilterError::Kernel(format!("list set {set} of {table}"), e))?;
        // Where one ends and the next begins, the end comes first.
        ends.sort_unstable();
        let mut intervals: Vec<Interval> = Vec::new();
        for (key, is_first) in ends {
            match intervals.last_mut() {
                _ if is_first => intervals.push(Interval { first: key, end: None }),
                Some(last) => last.end = Some(key),
                // nft says by an end at zero that the set does not begin there.
                None => {}
            }
        }
        Ok(intervals)
    }

    /// Collects what the kernel has in a set: `take` gets key, data and flags of each element.
    fn walk<T: Default>(
        &mut self,
        table: &Table,
        set: &str,
        take: impl Fn(&mut T, &[u8], &[u8], u32),
    ) -> io::Result<T> {
        let list = Request { kind: GETSETELEM, family: table.family.number() };
        let name = |w: &mut Writer| {
            w.text(NFTA_SET_TABLE, &table.name);
            w.text(NFTA_SET_NAME, set);
        };
        self.collect(list, name, |found, message| {
            for (_, element) in message.attributes().nest(3).iter() {
                let element = Attributes(element);
                let value = |kind| element.nest(kind).find(NFTA_DATA_VALUE).unwrap_or_default();
                let flags = element.word(NFTA_SET_ELEM_FLAGS).unwrap_or_default();
                take(found, value(NFTA_SET_ELEM_KEY), value(NFTA_SET_ELEM_DATA), flags);
            }
        })
    }
}

/// What is told of a rule by its expressions, but for what changes by itself.
fn digest(expressions: Attributes<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (_, expression) in expressions.iter() {
        let expression = Attributes(expression);
        let name = expression.text(NFTA_EXPR_NAME);
        if !matches!(name.as_deref(), Some("counter" | "quota" | "last")) {
            expression.find(NFTA_EXPR_DATA).hash(&mut hasher);
        }
        name.hash(&mut hasher);
    }
    hasher.finish()
}

/// The comment in the user data of a table or rule, as nft writes it.
fn comment(data: Option<&[u8]>) -> String {
    const COMMENT: u8 = 0;
    let mut rest = data.unwrap_or_default();
    while let [kind, len, tail @ ..] = rest {
        let Some((value, tail)) = tail.split_at_checked(usize::from(*len)) else { break };
        if *kind == COMMENT {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        rest = tail;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_found() {
        let elements = |bytes: &[u8]| Elements { key_len: 2, data_len: 1, bytes: bytes.to_vec() };
        assert!(elements(&[1, 2, 9, 1, 3, 9]).are_different());
        assert!(!elements(&[1, 2, 9, 1, 3, 9, 1, 2, 8]).are_different());
    }
}
