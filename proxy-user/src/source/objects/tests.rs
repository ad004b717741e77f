//! Objects as text in, what can be read of them out.

use super::*;
use crate::source::tests::mutate::{KINDS, object};

/// Reads `json` as `kind`, and says what is wrong.
fn fault(kind: &str, json: &str) -> Option<Box<Unreadable>> {
    match kind {
        "Service" => read::<Service>(json).err(),
        "EndpointSlice" => read::<EndpointSlice>(json).err(),
        "Node" => read::<Node>(json).err(),
        "Pod" => read::<Pod>(json).err(),
        "ServiceCIDR" => read::<ServiceCidr>(json).err(),
        "Namespace" => read::<Namespace>(json).err(),
        "ConfigMap" => read::<ConfigMap>(json).err(),
        other => panic!("{other}"),
    }
}

/// Calls `visit` with `whole` once for each value in it, with that value `null`.
fn with_each_null(whole: &Value, visit: &mut impl FnMut(&str, &Value)) {
    fn paths(value: &Value, path: String, all: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                paths(value, format!("{path}/{}", key.replace('/', "~1")), all);
            }),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| {
                paths(value, format!("{path}/{i}"), all);
            }),
            _ => {}
        }
        all.push(path);
    }
    let mut all = Vec::new();
    paths(whole, String::new(), &mut all);
    for path in all.iter().filter(|path| !path.is_empty()) {
        let mut changed = whole.clone();
        *changed.pointer_mut(path).unwrap() = Value::Null;
        visit(path, &changed);
    }
}

#[test]
fn null_is_as_good_as_absent_everywhere() {
    let mut tried = 0;
    for kind in KINDS {
        let whole = object(kind, "web", 7);
        assert_eq!(fault(kind, &whole.to_string()), None);
        with_each_null(&whole, &mut |path, changed| {
            tried += 1;
            let fault = fault(kind, &changed.to_string());
            let has_name = !["/metadata", "/metadata/name"].contains(&path);
            assert_eq!(fault.is_none(), has_name, "{kind} with {path} null: {fault:?}");
        });
    }
    assert!(tried > 150, "{tried}");
}

#[test]
fn what_a_field_that_is_not_used_holds_does_not_matter() {
    let deep = "[".repeat(5_000) + &"]".repeat(5_000);
    for value in ["null", "7", "\"x\"", "[]", "1e400", &deep] {
        let json = format!(
            "{{\"metadata\":{{\"name\":\"web\",\"managedFields\":{value}}},\"more\":{value},\
             \"status\":{{\"conditions\":{value}}}}}"
        );
        assert_eq!(fault("Service", &json), None, "{value:.20}");
    }
}

#[test]
fn a_field_of_another_type_is_named_with_its_object() {
    let cases = [
        ("{\"spec\": {\"ports\": [{}, {\"port\": \"http\"}]}", "spec.ports[1].port: ", "http"),
        ("{\"spec\": 7", "spec: ", "7"),
        ("{\"metadata\": {\"name\": \"web\", \"labels\": {\"a\": 1}}", "metadata.labels", "1"),
        ("{\"spec\": {\"ports\": [{\"port\": 3000000000}]}", "spec.ports[0].port: ", "3000000000"),
        ("{\"spec\": {\"type\": [\"x\"]}", "spec.type", "sequence"),
    ];
    for (json, path, value) in cases {
        let metadata = "\"metadata\": {\"name\": \"web\", \"namespace\": \"shop\", \"uid\": \"u\"}";
        let json = match json.contains("metadata") {
            true => format!("{json}}}"),
            false => format!("{json}, {metadata}}}"),
        };
        let fault = fault("Service", &json).expect(&json);
        assert!(fault.reason.starts_with(path), "{fault:?}");
        assert!(fault.reason.contains(value), "{fault:?}");
        assert!(!fault.reason.contains(" line "), "{fault:?}");
        assert_eq!(fault.metadata.name(), "web");
        let value = serde_json::from_str(&json).unwrap();
        assert_eq!(read_value::<Service>(&value).unwrap_err(), fault, "as a value");
    }
}

#[test]
fn a_reason_is_short_however_long_the_value_is() {
    let json = format!(
        "{{\"metadata\": {{\"name\": \"web\"}}, \"spec\": {{\"ports\": \"{}\"}}}}",
        "ä".repeat(1 << 20)
    );
    let fault = fault("Service", &json).unwrap();
    assert!(fault.reason.len() < 3 * REASON, "{}", fault.reason.len());
}
