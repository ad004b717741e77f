//! How much work the programs are to the kernel's verifier, which refuses those that take it a
//! million instructions.

use crate::plane::Plane;

/// How many instructions the verifier may follow in a program. Far enough from a million for
/// verifiers that prune less than this kernel's, and near what it is: a program that begins to cost
/// much more does so for a reason that somebody should know.
fn most(program: &str) -> u32 {
    match program {
        "names" => 100_000,
        "ingress" | "ingress_bare" => 14_000,
        _ => 8_000,
    }
}

/// Prints the counts: `cargo test -p proxy-user --test programs verifier -- --nocapture`.
#[test]
fn every_program_is_easy_for_the_verifier() {
    for (name, program) in Plane::new().programs() {
        let info = program.info().unwrap();
        let count = info.verified_instruction_count().expect("since Linux 5.16");
        let size = info.size_translated().unwrap_or(0) / 8;
        println!("{name}: {size} instructions, {count} verified");
        assert!(count <= most(name), "{name}: {count} instructions verified");
    }
}
