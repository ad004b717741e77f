//! Answers that go wrong on command.

use serde_json::{Value, json};
use std::time::Duration;

/// A fault: which requests, how often, and what they are answered.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The verb as RBAC names it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`;
    /// empty for all.
    pub verb: &'static str,
    /// The resource, such as `services`; empty for all.
    pub resource: &'static str,
    /// How many requests it answers; `usize::MAX` for all to come.
    pub times: usize,
    /// The answer.
    pub refusal: Refusal,
}

/// The answer to a request that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// 401, as for an expired token.
    Unauthorized,
    /// 403, as RBAC refuses.
    Forbidden,
    /// 404, as for a kind that the API server does not know.
    NotFound,
    /// 410, as for a version whose history was compacted.
    Gone,
    /// 422, as an API server without streamed lists answers a request for one.
    Invalid,
    /// 429 with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// 500.
    InternalError,
    /// 503.
    Unavailable,
    /// The right answer, broken off halfway; of a watch, its first objects.
    Half,
    /// A list that is asked for as a stream, without the mark of its end: the answer of a server
    /// before 1.27.
    Unmarked,
    /// The right answer, late.
    Late(Duration),
}

impl Refusal {
    /// The HTTP status, and the `Status` object.
    pub(super) fn status(self, verb: &str, resource: &str, group: &str) -> (u16, Value) {
        let (code, reason, message) = match self {
            Self::Unauthorized => (401, "Unauthorized", "Unauthorized".into()),
            Self::Forbidden => (
                403,
                "Forbidden",
                format!(
                    "{resource} is forbidden: User \"system:serviceaccount:kube-system:shunt\" \
                     cannot {verb} resource \"{resource}\" in API group \"{group}\" at the \
                     cluster scope"
                ),
            ),
            Self::NotFound => {
                (404, "NotFound", "the server could not find the requested resource".into())
            }
            Self::Gone => (410, "Expired", "too old resource version".into()),
            Self::Invalid => (
                422,
                "Invalid",
                "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: \
                 sendInitialEvents is forbidden for watch unless the WatchList feature gate is \
                 enabled"
                    .into(),
            ),
            Self::TooManyRequests(_) => (429, "TooManyRequests", "too many requests".into()),
            Self::InternalError => (500, "InternalError", "an internal error".into()),
            Self::Unavailable | Self::Half | Self::Unmarked | Self::Late(_) => {
                (503, "ServiceUnavailable", "not ready".into())
            }
        };
        let mut status = status(code, reason, &message);
        if let Self::TooManyRequests(seconds) = self {
            status["details"] = json!({"retryAfterSeconds": seconds});
        }
        (code, status)
    }
}

/// A `Status` object that reports a failure.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}
