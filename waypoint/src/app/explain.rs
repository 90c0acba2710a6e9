//! `GET /explain` and `waypoint explain`: what would become of a request, and why, told by the code that decides about requests.
//!
//! `question` reads what is asked, `judge` finds the answer in what is published now, with `endpoints`, `text` words it for people, `ask` is the command.
//! Not for: deciding; nothing here has an opinion of its own. Nothing is sent, counted or logged, and no external service is asked.

mod ask;
mod endpoints;
mod judge;
mod question;
mod text;

use crate::admin::Answer;
use crate::state::published::Published;

pub use self::ask::ask;
use self::question::{Output, Question};

/// Answers the query of `GET /explain`.
pub(super) fn page(published: &Published, query: &str) -> Answer {
    let question = match Question::parse(query) {
        Ok(question) => question,
        Err(problem) => return Answer::Refused(format!("{problem}\n\n{}", question::USAGE)),
    };
    match judge::explain(published, &question) {
        Ok(explanation) => match question.output {
            Output::Text => Answer::Text(text::of(&explanation)),
            Output::Json => Answer::Json(format!("{:#}\n", serde_json::json!(explanation))),
        },
        Err(problem) => Answer::Refused(format!("{problem}\n")),
    }
}
