//! What a failed request means, in words for an operator.

use kube::Error;
use std::io;

/// What is wrong when the API server answers a request for `resource` with `error`.
pub(super) fn explain(resource: &str, error: &Error) -> String {
    match error {
        Error::Api(status) => match status.code {
            401 => "it refuses the credentials (401): renew the token or the certificate in the \
                    kubeconfig or the service account"
                .into(),
            403 => format!(
                "{resource} may not be read (403): let a ClusterRole grant list and watch on \
                 {resource} to {}; it says: {}",
                user(&status.message),
                status.message
            ),
            429 => format!("it has too much to do to send {resource} (429)"),
            code => format!("it answers {code} when asked for {resource}: {}", status.message),
        },
        Error::SerdeError(reason) => {
            format!("what it sends of {resource} is no JSON of Kubernetes: {reason}")
        }
        other => unreachable_server(other),
    }
}

/// The user whom the API server names in a refusal, such as
/// `services is forbidden: User "shunt" cannot list resource …`.
fn user(message: &str) -> &str {
    let named = message.split_once("User \"").and_then(|(_, rest)| rest.split_once('"'));
    named.map_or("the agent's user", |(user, _)| user)
}

fn unreachable_server(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            "it refuses connections: check that it runs, and the server's address in the kubeconfig"
                .into()
        }
        _ => format!("it cannot be reached: {cause}"),
    }
}
