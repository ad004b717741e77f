//! Lists and watches with anything in them: nothing panics, and what is whole is read.

use super::super::*;
use crate::model::World;
use crate::plan::Planner;
use crate::source::kube::feed::{
    Corefile, Few, Namespaces, OwnNode, OwnPods, ServiceCidrs, Services, Slices,
};
use crate::source::tests::mutate::{KINDS, Random, damage, executions, mutate, object};
use serde_json::json;

/// As many as take a second or two.
const EXECUTIONS: u64 = 6_000;

/// What the changes of a kind add up to.
struct Sum {
    world: World,
    planner: Planner,
}

impl Sum {
    fn new() -> Self {
        Self { world: World::default(), planner: Planner::new("node-a") }
    }

    fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let touched = self.world.apply(change);
            let _ = self.planner.update(&self.world, &touched);
        }
    }
}

/// Reads some good objects of `kind` with a strange one among them.
fn run<F: Feed>(feed: F, kind: &str, random: &mut Random) {
    let (mut reader, mut sum) = (Reader::new(feed), Sum::new());
    let mut version = 0;
    let mut next = |name: &str| {
        version += 1;
        object(kind, name, version)
    };
    let mut listed = vec![next("good-0"), next("strange"), next("good-1")];
    if random.below(2) == 0 {
        mutate(&mut listed[1], random);
    }
    reader.begin_list();
    if random.below(2) == 0 {
        let page = json!({"metadata": {"resourceVersion": "9"}, "items": listed}).to_string();
        assert_eq!(reader.page(page.as_bytes()).expect("the list is JSON"), None);
        sum.take(reader.end_list());
    } else {
        for object in &listed {
            let said = reader.line(&line("ADDED", object)).expect("the line is JSON");
            assert!(matches!(said, Said::Something(None)));
        }
        let end = json!({"metadata": {"resourceVersion": "9",
                         "annotations": {"k8s.io/initial-events-end": "true"}}});
        match reader.line(&line("BOOKMARK", &end)).expect("the line is JSON") {
            Said::Listed(changes) => sum.take(changes),
            Said::Something(_) => panic!("the list does not end"),
        }
    }
    assert_eq!(reader.version.as_deref(), Some("9"));
    for version in 10..14 {
        let mut strange = object(kind, "strange", version);
        (0..=random.below(3)).for_each(|_| mutate(&mut strange, random));
        let event = random.of(&["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "NEW"]);
        let good = object(kind, &format!("good-{}", version % 3), 100 + version);
        for line in [line(event, &strange), line("MODIFIED", &good)] {
            match reader.line(&line).expect("the line is JSON") {
                Said::Something(change) => sum.take(change),
                Said::Listed(_) => panic!("a list ends that did not begin"),
            }
        }
        assert_eq!(reader.version, Some((100 + version).to_string()), "the watch comes on");
    }
    check(kind, &sum.world, &reader);
    // Whatever comes then, nothing is taken that is not whole, and nothing panics.
    let mut lines = line("MODIFIED", &object(kind, "good-0", 200));
    damage(&mut lines, random);
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        if let Ok(Said::Something(change)) = reader.line(line) {
            sum.take(change);
        }
    }
    let mut page =
        json!({"metadata": {"resourceVersion": "9"}, "items": listed}).to_string().into();
    damage(&mut page, random);
    reader.begin_list();
    if reader.page(&page).is_ok() {
        sum.take(reader.end_list());
    }
}

fn line(event: &str, object: &Value) -> Vec<u8> {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into()
}

fn check<F: Feed>(kind: &str, world: &World, reader: &Reader<F>) {
    let has = |name: &str| match kind {
        "Service" => world.services().any(|service| &*service.name.name == name),
        "Namespace" => world.namespaces().is_some_and(|all| all.contains(name)),
        // The others come as a whole.
        _ => true,
    };
    for good in ["good-0", "good-1", "good-2"] {
        assert!(has(good), "{kind} {good} is missing");
    }
    if kind == "EndpointSlice" {
        assert!(world.slice_count() >= 3, "{}", world.slice_count());
    }
    let warnings = reader.warnings();
    assert!(warnings.len() <= NAMED + 1);
    for warning in warnings {
        assert!(!warning.subject.contains("good"), "{warning:?}");
        assert!(warning.message.len() < 2_000, "{}", warning.message.len());
    }
}

#[test]
fn whatever_one_object_holds_the_others_are_read() {
    let executions = executions(EXECUTIONS);
    for execution in 0..executions {
        let random = &mut Random::new(execution + 1);
        // A seed that fails is in the message of the panic above it.
        let _seed = Seed(execution);
        match *random.of(&KINDS) {
            "Service" => run(Services::new(true), "Service", random),
            "EndpointSlice" => run(Slices::new(), "EndpointSlice", random),
            "Node" => run(Few::of(OwnNode("good-0".into())), "Node", random),
            "Pod" => run(Few::of(OwnPods("node-a".into())), "Pod", random),
            "ServiceCIDR" => run(Few::of(ServiceCidrs), "ServiceCIDR", random),
            "Namespace" => run(Namespaces::default(), "Namespace", random),
            _ => run(Few::of(Corefile), "ConfigMap", random),
        }
    }
    println!("{executions} executions");
}

/// Says in which execution a test panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in execution {}", self.0);
        }
    }
}
