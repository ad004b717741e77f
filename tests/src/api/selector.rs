//! Label and field selectors.

use serde_json::Value;

/// What a request asks for among the objects of a resource.
#[derive(Clone, Default, Debug)]
pub(super) struct Selector {
    /// The namespace; `None` for all.
    pub(super) namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(super) fn new(namespace: Option<String>, labels: &str, fields: &str) -> Self {
        Self { namespace, labels: requirements(labels), fields: requirements(fields) }
    }

    /// Whether `object` is asked for.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let here = |namespace: &String| metadata["namespace"] == namespace.as_str();
        let label = |key: &str| metadata["labels"].get(key).and_then(Value::as_str);
        let field = |key: &str| {
            Some(
                object
                    .pointer(&format!("/{}", key.replace('.', "/")))
                    .and_then(Value::as_str)
                    .unwrap_or(""),
            )
        };
        self.namespace.as_ref().is_none_or(here)
            && self.labels.iter().all(|label_test| label_test.holds(label(&label_test.key)))
            && self.fields.iter().all(|field_test| field_test.holds(field(&field_test.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Test::NotIn(values) => {
                !value.is_some_and(|value| values.iter().any(|one| one == value))
            }
        }
    }
}

/// `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (b, c)`, `a notin (b)`, joined by commas.
fn requirements(text: &str) -> Vec<Requirement> {
    let mut depth = 0;
    let parts = text.split(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(requirement).collect()
}

fn requirement(text: &str) -> Requirement {
    let list = |values: &str| {
        values.trim_matches(['(', ')', ' ']).split(',').map(|v| v.trim().into()).collect()
    };
    let one = |value: &str| vec![value.trim_start_matches('=').trim().to_string()];
    let (key, test) = if let Some((key, values)) = text.split_once(" notin ") {
        (key, Test::NotIn(list(values)))
    } else if let Some((key, values)) = text.split_once(" in ") {
        (key, Test::In(list(values)))
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once('=') {
        (key, Test::In(one(value)))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (text, Test::Exists)
    };
    Requirement { key: key.trim().into(), test }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_select_as_kubernetes_does() {
        let object = json!({"metadata": {"name": "web", "labels": {"a": "1", "b": ""}}});
        for (labels, expected) in [
            ("", true),
            ("a", true),
            ("b", true),
            ("!c", true),
            ("!b", false),
            ("a=1,b=", true),
            ("a==2", false),
            ("a!=2,c!=1", true),
            ("a in (0, 1),b", true),
            ("a notin (1, 2)", false),
            ("c notin (1)", true),
        ] {
            assert_eq!(Selector::new(None, labels, "").matches(&object), expected, "{labels}");
        }
        assert!(Selector::new(None, "", "metadata.name=web").matches(&object));
        assert!(!Selector::new(None, "", "metadata.name=other").matches(&object));
        assert!(!Selector::new(Some("x".into()), "", "").matches(&object));
    }
}
