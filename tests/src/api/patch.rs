//! Patches: RFC 7386 merge patches, and as much of strategic merge patches as `kubectl apply`
//! sends for the kinds that are served.

use serde_json::{Map, Value};

const ORDER: &str = "$setElementOrder/";

/// Changes `target` as the merge patch `patch` says.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            fields.remove(key);
        } else if let (Value::Array(items), Some(Value::Array(order))) =
            (value, patch.get(&format!("{ORDER}{key}")))
            && order.iter().all(Value::is_object)
        {
            merge_list(fields.entry(key).or_insert_with(|| Value::Array(Vec::new())), items, order);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// A list whose elements have a merge key: `order` names all that remain, by that key alone.
fn merge_list(target: &mut Value, items: &[Value], order: &[Value]) {
    let old = target.as_array().cloned().unwrap_or_default();
    let merged = order.iter().map(|keys| {
        let same = |element: &&Value| {
            keys.as_object()
                .is_some_and(|keys| keys.iter().all(|(key, value)| element[key] == *value))
        };
        let mut element = old.iter().find(same).cloned().unwrap_or_else(|| keys.clone());
        if let Some(patch) = items.iter().find(same) {
            merge(&mut element, patch);
        }
        element
    });
    *target = Value::Array(merged.collect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_change_what_they_name_and_no_more() {
        let mut object = json!({"a": 1, "b": {"c": 2, "d": 3}, "list": [1]});
        merge(&mut object, &json!({"a": null, "b": {"c": 4}, "list": [2, 3], "e": {"f": null}}));
        assert_eq!(object, json!({"b": {"c": 4, "d": 3}, "list": [2, 3], "e": {}}));
    }

    #[test]
    fn a_strategic_patch_merges_ports_by_their_key() {
        let mut spec = json!({"ports": [{"port": 80, "name": "http"}, {"port": 81}, {"port": 82}]});
        let patch = json!({
            "$setElementOrder/ports": [{"port": 82}, {"port": 80}, {"port": 90}],
            "ports": [{"port": 80, "targetPort": 8080}, {"port": 90, "name": "new"},
                      {"port": 81, "$patch": "delete"}],
        });
        merge(&mut spec, &patch);
        let expected = json!({"ports": [
            {"port": 82}, {"port": 80, "name": "http", "targetPort": 8080}, {"port": 90, "name": "new"},
        ]});
        assert_eq!(spec, expected);
    }
}
