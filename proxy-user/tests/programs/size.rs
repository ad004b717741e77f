//! How much work the programs are to the kernel's verifier, which refuses those that take it a
//! million instructions.

use crate::plane::Plane;

/// Far enough from a million for verifiers that prune less than this kernel's.
const MOST: u32 = 100_000;

/// Prints the counts: `cargo test -p proxy-user --test programs verifier -- --nocapture`.
#[test]
fn every_program_is_a_tenth_of_what_the_verifier_takes_or_less() {
    for (name, program) in Plane::new().programs() {
        let info = program.info().unwrap();
        let count = info.verified_instruction_count().expect("since Linux 5.16");
        let size = info.size_translated().unwrap_or(0) / 8;
        println!("{name}: {size} instructions, {count} verified");
        assert!(count <= MOST, "{name}: {count} instructions verified");
    }
}
