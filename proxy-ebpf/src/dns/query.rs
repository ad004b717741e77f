//! Reading a query: one question, in the class IN, about a name of the zone.

use super::outcome::Outcome;
use super::{HEADER, IN, LONGEST, READ, Work, Zone, lower};

/// How many labels a name may have, without the root.
const LABELS: usize = 20;
/// How long a name may be that is read, in bytes and without the root: a name relative to the
/// longest zone.
const NAME: usize = super::name::NAME_LEN + super::zone::ZONE_LEN;
/// How many words most zones have at most.
const SHORT_ZONE: usize = 3;
/// The length of an OPT record without options (RFC 6891 section 6.1.2).
const OPT_LEN: usize = 11;
const OPT: u16 = 41;

/// The question of a query. Offsets are in bytes from the first byte of the message.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Where the labels begin that are left of the zone, the first [`LABELS`] of them.
    pub(super) starts: [u8; 32],
    /// How many they are.
    pub(super) labels: u64,
    /// Where the zone begins.
    pub(super) zone: u64,
    /// Where the question ends.
    pub end: u64,
    /// The type.
    pub kind: u16,
    /// The longest reply that the asker takes, in bytes, as far as the kernel makes one.
    pub room: u16,
    /// 1 if the query has an OPT record, and the reply has to.
    pub edns: u16,
    /// The flags of the OPT record that the reply repeats: DO.
    pub edns_flags: u16,
}

impl Question {
    pub(super) const EMPTY: Self = Self {
        starts: [0; 32],
        labels: 0,
        zone: 0,
        end: 0,
        kind: 0,
        room: 0,
        edns: 0,
        edns_flags: 0,
    };

    /// Where label `index` begins.
    #[inline(always)]
    pub(super) fn start(&self, index: u64) -> usize {
        self.starts[(index & 31) as usize] as usize
    }
}

impl Work {
    /// Reads the question of the query, which has `len` bytes, into [`Work::question`]. The type
    /// is 0 as long as it is not known.
    pub fn read(&mut self, len: usize, zone: &Zone) -> Result<(), Outcome> {
        self.read_name(len)?;
        self.read_question(len, zone)
    }

    /// The first half of [`Work::read`]: the header, and the labels of the name.
    #[inline(always)]
    pub fn read_name(&mut self, len: usize) -> Result<(), Outcome> {
        self.question.kind = 0;
        if len < HEADER {
            return Err(Outcome::Malformed);
        }
        // A query without AA and TC; one question; no answer and no authority.
        if self.byte(2) & 0xfe != 0 || self.number(4) != 1 || self.number(6) != 0 {
            return Err(Outcome::Unsupported);
        }
        if self.number(8) != 0 || self.number(10) > 1 {
            return Err(Outcome::Unsupported);
        }
        self.find_labels(len)
    }

    /// The second half of [`Work::read`]: type, class, EDNS and zone. The verifier would otherwise
    /// follow it for each number of labels.
    #[inline(always)]
    pub fn read_question(&mut self, len: usize, zone: &Zone) -> Result<(), Outcome> {
        let end = self.question.end as usize;
        let (kind, class) = (self.number(end - 4), self.number(end - 2));
        self.question.kind = kind;
        // OPT and what only a query can ask for (RFC 6895 section 3.1), such as ANY and AXFR.
        if class != IN || kind == 0 || kind == OPT || (128..=255).contains(&kind) {
            return Err(Outcome::Unsupported);
        }
        self.read_edns(self.number(10), len)?;
        self.match_zone(zone)
    }

    /// Finds the labels and the end of the question.
    #[inline(always)]
    fn find_labels(&mut self, len: usize) -> Result<(), Outcome> {
        let read = len.min(READ);
        let mut at = HEADER;
        for index in 0..=LABELS {
            if at >= read {
                return Err(Outcome::Malformed);
            }
            let label = self.byte(at);
            if label == 0 {
                let end = at + 5;
                if end > read {
                    return Err(Outcome::Malformed);
                }
                self.question.labels = index as u64;
                self.question.end = end as u64;
                return Ok(());
            }
            // A pointer, or a form of label that is no more (RFC 6891 section 5).
            if label > 63 {
                return Err(Outcome::Unsupported);
            }
            self.question.starts[index & 31] = at as u8;
            at += label + 1;
            if at > HEADER + NAME {
                return Err(Outcome::Unsupported);
            }
        }
        Err(Outcome::Unsupported)
    }

    /// Reads the OPT record, if there is one.
    #[inline(always)]
    fn read_edns(&mut self, records: u16, len: usize) -> Result<(), Outcome> {
        let question = &mut self.question;
        (question.room, question.edns, question.edns_flags) = (512, 0, 0);
        if records == 0 {
            return Ok(());
        }
        let at = self.question.end as usize & 0xff;
        if at + OPT_LEN > len.min(READ) || self.byte(at) != 0 || self.number(at + 1) != OPT {
            return Err(Outcome::Unsupported);
        }
        // An extended code and a version, of which there is only 0.
        if self.number(at + 5) != 0 {
            return Err(Outcome::Unsupported);
        }
        if at + OPT_LEN + self.number(at + 9) as usize > len {
            return Err(Outcome::Malformed);
        }
        let (size, flags) = (self.number(at + 3), self.number(at + 7));
        let question = &mut self.question;
        question.room = size.clamp(512, LONGEST);
        question.edns = 1;
        question.edns_flags = flags & 0x8000;
        Ok(())
    }

    /// Splits the zone off the name.
    #[inline(always)]
    fn match_zone(&mut self, zone: &Zone) -> Result<(), Outcome> {
        let (name, len, labels) = zone.name();
        let (end, count) = (self.question.end as usize - 4, self.question.labels);
        if labels as u64 > count || len + HEADER > end {
            return Err(Outcome::OtherZone);
        }
        // The bytes of the zone may lie within a label.
        let begin = end - len;
        let labels = count - labels as u64;
        if self.question.start(labels) != begin {
            return Err(Outcome::OtherZone);
        }
        let mut different = 0;
        for (index, word) in name.iter().take(SHORT_ZONE).enumerate() {
            different |= lower(self.word(begin + index * 8), index, len) ^ word;
        }
        if len > SHORT_ZONE * 8 {
            for (index, word) in name.iter().enumerate().skip(SHORT_ZONE) {
                different |= lower(self.word(begin + index * 8), index, len) ^ word;
            }
        }
        if different != 0 {
            return Err(Outcome::OtherZone);
        }
        if begin - HEADER > super::name::NAME_LEN {
            return Err(Outcome::Unsupported);
        }
        self.question.labels = labels;
        self.question.zone = begin as u64;
        Ok(())
    }
}
