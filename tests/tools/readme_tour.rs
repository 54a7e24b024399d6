//! The tour of the README, pasted into a shell against a real `lifeboat dev`.
//!
//! Everything in a `sh` or `console` block between `<!-- tour:begin -->` and `<!-- tour:end -->` runs, in one bash, in
//! order, with the address 127.0.0.1 replaced by one that this test owns. A command that fails, fails the test, and so
//! does a problem document that the tour did not announce. A comment behind a command says what it prints: one word, a
//! status with its reason (`201 Created`), or a beginning that ends in `…`. Any other comment is for people.

use crate::support::tour::Dev;

/// One command of the tour.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    /// What its output must contain.
    expected: Option<String>,
}

/// The commands of the tour in a README.
fn steps(readme: &str) -> Vec<Step> {
    let (_, rest) = readme.split_once("<!-- tour:begin -->").expect("the README has a tour");
    let (tour, _) = rest.split_once("<!-- tour:end -->").expect("the tour ends");
    let mut steps = Vec::new();
    let mut inside = false;
    let mut unfinished = String::new();
    for line in tour.lines() {
        match line.trim() {
            "```sh" | "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            "" => {}
            text if text.starts_with('#') => {}
            text => {
                let text = text.strip_prefix("$ ").unwrap_or(text);
                if let Some(begun) = text.strip_suffix('\\') {
                    unfinished += begun;
                    continue;
                }
                let command = std::mem::take(&mut unfinished) + text;
                let comment = command.rsplit_once(" # ").map(|(_, comment)| comment.trim().to_string());
                steps.push(Step { command, expected: comment.and_then(|comment| expectation(&comment)) });
            }
        }
    }
    assert!(!inside && unfinished.is_empty(), "the tour ends inside of a block");
    steps
}

/// What a comment promises about the output, if it does.
fn expectation(comment: &str) -> Option<String> {
    let words: Vec<&str> = comment.split_whitespace().collect();
    let is_status = |word: &str| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(beginning) = comment.strip_suffix('…') {
        return Some(beginning.trim_end().to_string());
    }
    match words[..] {
        [word] => Some(word.to_string()),
        [status, reason, ..] if is_status(status) && reason.starts_with(char::is_uppercase) => {
            Some(comment.to_string())
        }
        _ => None,
    }
}

#[test]
fn a_comment_may_promise_what_is_printed() {
    assert_eq!(expectation("hello").as_deref(), Some("hello"));
    assert_eq!(expectation("412 Precondition Failed").as_deref(), Some("412 Precondition Failed"));
    assert_eq!(expectation("Lifeboat-Lag-Seconds: …").as_deref(), Some("Lifeboat-Lag-Seconds:"));
    assert_eq!(expectation("503 if it is older"), None);
    assert_eq!(expectation("for people to read"), None);
    let readme =
        "curl no\n<!-- tour:begin -->\n```sh\ncurl a \\\n  b   # x\n```\nprose\n```rust\nno\n```\n<!-- tour:end -->";
    let expected = Step { command: "curl a b   # x".into(), expected: Some("x".into()) };
    assert_eq!(steps(readme), [expected]);
}

#[test]
fn the_tour_of_the_readme_works_when_pasted() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let steps = steps(&readme);
    assert!(steps.len() >= 10, "a tour of {} commands", steps.len());
    let dev = Dev::start();
    let printed = dev.run(steps.iter().map(|step| step.command.as_str()), true);
    let (outputs, errors) = (&printed.outputs, &printed.errors);
    assert!(printed.status.success(), "the tour stopped with {}:\n{outputs:#?}\n{errors}", printed.status);
    assert_eq!(outputs.len(), steps.len(), "{outputs:#?}");
    let mut promises = 0;
    for (step, output) in steps.iter().zip(outputs) {
        let announced = step.expected.as_deref().unwrap_or_default();
        if let Some(expected) = &step.expected {
            // The names of headers have no case.
            let found = output.to_lowercase().contains(&expected.to_lowercase());
            assert!(found, "`{}` printed\n{output}", step.command);
            promises += 1;
        }
        let failed = output.contains("urn:lifeboat:problem:");
        assert!(!failed || announced.starts_with(['4', '5']), "`{}` failed:\n{output}", step.command);
    }
    assert!(promises >= 5, "the tour promises only {promises} things");
    dev.stop();
}
