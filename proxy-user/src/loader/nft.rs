//! The chains of netfilter's tables, to tell whether another proxy has rules here.
//!
//! Reads only, over `NETLINK_NETFILTER` (the kernel's `linux/netfilter/nf_tables.h`). Chains that
//! `iptables-nft` made are among them; those of `iptables-legacy` are not.

use super::netlink::{Action, Request, ask, attribute};
use std::io;

const NETLINK_NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `struct nfgenmsg`: of any family.
const GENERIC: [u8; 4] = [0; 4];

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The table that it is in.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// The first chain for which `wanted` says so, if there is one.
pub fn find_chain(wanted: impl Fn(&Chain) -> bool) -> io::Result<Option<Chain>> {
    let mut found = None;
    let list = Request { protocol: NETLINK_NETFILTER, kind: GET_CHAIN, action: Action::List };
    ask(list, &GENERIC, |message| {
        let text = |kind| {
            let value = attribute(message.get(GENERIC.len()..)?, kind)?;
            Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
        };
        if found.is_none() {
            let chain = text(CHAIN_TABLE).zip(text(CHAIN_NAME));
            found = chain.map(|(table, name)| Chain { table, name }).filter(&wanted);
        }
    })?;
    Ok(found)
}
