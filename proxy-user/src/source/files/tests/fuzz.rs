//! Manifests with anything in them: nothing panics, and the documents that are whole are read.

use super::super::manifest::read;
use crate::source::convert::Converter;
use crate::source::tests::mutate::{KINDS, Random, damage, executions, mutate, object};

/// As many as take a second or two: YAML is slow.
const EXECUTIONS: u64 = 600;

#[test]
fn whatever_one_document_holds_the_others_are_read() {
    let executions = executions(EXECUTIONS);
    let mut converter = Converter::new(true);
    let good = |name: &str| object("Service", name, 1).to_string();
    for execution in 0..executions {
        let random = &mut Random::new(execution + 1);
        let mut strange = object(KINDS[random.below(KINDS.len())], "strange", 2);
        (0..=random.below(3)).for_each(|_| mutate(&mut strange, random));
        let as_json = random.below(2) == 0;
        let mut document = match as_json {
            true => strange.to_string(),
            false => serde_yaml_ng::to_string(&strange).unwrap(),
        };
        if random.below(3) == 0 {
            let mut bytes = document.into_bytes();
            damage(&mut bytes, random);
            document = String::from_utf8_lossy(&bytes).into_owned();
        }
        let text = format!("{}\n---\n{document}\n---\n{}\n", good("a"), good("b"));
        let (mut manifest, faults) = read(&text, &mut converter);
        let names: Vec<_> = manifest.services.iter().map(|service| &*service.name.name).collect();
        let has = |name| names.contains(&name);
        assert!(has("a") && has("b"), "execution {execution}: {names:?}, {faults:?}");
        assert!(faults.iter().all(|fault| fault.reason.len() < 2_000), "execution {execution}");
        let (before, _) = read(&text, &mut converter);
        let count = manifest.services.len();
        manifest.keep(before);
        assert_eq!(manifest.services.len(), count, "execution {execution}");
    }
    println!("{executions} executions");
}
