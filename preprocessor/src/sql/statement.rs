//! The statement as text: `CREATE STREAM name AS SELECT …`, and which clauses it may have.
//!
//! DataFusion would plan much more, and swallow some of it silently (`CLUSTER BY`, `FOR UPDATE`). Each clause that a
//! stream can't have is refused here, and only here, where it still has its name. What expressions hold is judged in
//! the plan, by `shape`.

use datafusion_sql::sqlparser::ast::{
    Distinct, GroupByExpr, JoinOperator, Query, Select, SetExpr, Statement, TableFactor,
};
use datafusion_sql::sqlparser::dialect::GenericDialect;
use datafusion_sql::sqlparser::parser::Parser;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Parses the statement and refuses what a stream can't do.
pub(super) fn parse(name: &str, sql: &str) -> Result<Statement, String> {
    let dialect = GenericDialect {};
    let mut tokens =
        Tokenizer::new(&dialect, sql).tokenize_with_location().map_err(|e| in_plain_words(sql, &e.to_string()))?;
    let mut words = tokens.iter().enumerate().filter(|(_, t)| !matches!(t.token, Token::Whitespace(_))).take(4);
    let mut word = || {
        words.next().and_then(|(at, token)| match &token.token {
            Token::Word(word) => Some((at, word.value.clone())),
            _ => None,
        })
    };
    let prefix = (word(), word(), word(), word());
    let (Some((_, create)), Some((_, stream)), Some((_, declared)), Some((at, keyword))) = prefix else {
        return Err(format!("the statement must begin with CREATE STREAM {name} AS SELECT"));
    };
    let is_prefix = [(create, "create"), (stream, "stream"), (keyword, "as")];
    if !is_prefix.iter().all(|(word, wanted)| word.eq_ignore_ascii_case(wanted)) {
        return Err(format!("the statement must begin with CREATE STREAM {name} AS SELECT"));
    }
    if declared != name {
        return Err(format!("the statement creates stream {declared}, but its folder is called {name}"));
    }
    let select = tokens.split_off(at + 1);
    let behind = select.iter().skip_while(|t| t.token != Token::SemiColon);
    if let Some(second) = behind.skip(1).find(|t| !matches!(t.token, Token::Whitespace(_) | Token::SemiColon)) {
        let line = second.span.start.line;
        return Err(format!("{LINE}{line}: a second statement begins here: a stream has one"));
    }
    let mut statements = Parser::new(&dialect)
        .with_tokens_with_locations(select)
        .parse_statements()
        .map_err(|e| in_plain_words(sql, &e.to_string()))?;
    let statement = statements.pop().ok_or_else(|| format!("nothing follows CREATE STREAM {name} AS"))?;
    match &statement {
        Statement::Query(query) => check_query(query).map_err(refusal)?,
        _ => return Err(format!("CREATE STREAM {name} AS must be followed by SELECT")),
    }
    Ok(statement)
}

/// What a message begins with that knows its line: `line 4: …`.
pub(crate) const LINE: &str = "line ";

/// What the parser says, `sql parser error: Expected: X, found: Y at Line: 4, Column: 5`.
fn in_plain_words(sql: &str, message: &str) -> String {
    let message = message.trim_start_matches("sql parser error: ");
    let (what, place) = message.rsplit_once(" at Line: ").unwrap_or((message, ""));
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let place = place.split_once(", Column: ").and_then(|(line, column)| Some((number(line)?, number(column)?)));
    let before = place.map(|(line, column)| {
        let lines = sql.lines().take(line).enumerate();
        let line_before = |(i, text): (usize, &str)| match i + 1 == line {
            true => text.chars().take(column.saturating_sub(1)).collect(),
            false => text.to_owned(),
        };
        lines.map(line_before).collect::<Vec<String>>().join("\n")
    });
    let has_from = |text: &String| text.split_whitespace().any(|word| word.eq_ignore_ascii_case("from"));
    let what = match what.strip_prefix("Expected: ").and_then(|rest| rest.split_once(", found: ")) {
        Some(("end of statement", found)) if before.as_ref().is_some_and(|before| !has_from(before)) => {
            // In `a r.b` the parser has taken r as another name of a.
            let word = before.as_deref().and_then(|before| before.split_whitespace().last());
            let found = if found == "." { word.unwrap_or(found) } else { found };
            format!("expected a comma or FROM before {found}")
        }
        Some((expected, "EOF")) => format!("expected {expected}, but the statement ends"),
        Some((expected, found)) => format!("expected {expected} before {found}"),
        None => what[..1].to_lowercase() + &what[1..],
    };
    // At the end of the text there is no line that could be looked at.
    match place.filter(|(line, _)| *line > 0) {
        Some((line, _)) => format!("{LINE}{line}: {what}"),
        None => what,
    }
}

/// The message for a part of SQL that a stream can't do.
pub(super) fn refusal(what: &str) -> String {
    format!(
        "{what} is not possible in a stream, where each record stands for itself: a stream can select, filter \
        (WHERE) and look up tables by their key (LEFT JOIN, JOIN)"
    )
}

fn check_query(query: &Query) -> Result<(), &'static str> {
    let refused = [
        (query.with.is_some(), "WITH"),
        (query.order_by.is_some(), "ORDER BY"),
        (query.limit_clause.is_some(), "LIMIT"),
        (query.fetch.is_some(), "FETCH"),
        (!query.locks.is_empty(), "FOR UPDATE"),
        (query.for_clause.is_some(), "FOR"),
        (query.settings.is_some(), "SETTINGS"),
        (query.format_clause.is_some(), "FORMAT"),
        (!query.pipe_operators.is_empty(), "|>"),
    ];
    first(&refused)?;
    match query.body.as_ref() {
        SetExpr::Select(select) => check_select(select),
        SetExpr::SetOperation { .. } => Err("UNION, INTERSECT or EXCEPT"),
        SetExpr::Query(_) => Err("a query in parentheses"),
        SetExpr::Values(_) => Err("VALUES"),
        _ => Err("anything but SELECT"),
    }
}

fn check_select(select: &Select) -> Result<(), &'static str> {
    let grouped = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(keys, modifiers) => !keys.is_empty() || !modifiers.is_empty(),
    };
    let refused = [
        (matches!(select.distinct, Some(Distinct::Distinct | Distinct::On(_))), "DISTINCT"),
        (select.top.is_some(), "TOP"),
        (select.into.is_some(), "INTO"),
        (select.exclude.is_some(), "EXCLUDE"),
        (select.select_modifiers.is_some(), "a modifier after SELECT"),
        (!select.lateral_views.is_empty(), "LATERAL VIEW"),
        (select.prewhere.is_some(), "PREWHERE"),
        (!select.connect_by.is_empty(), "CONNECT BY"),
        (grouped, "GROUP BY"),
        (select.having.is_some(), "HAVING"),
        (!select.cluster_by.is_empty() || !select.distribute_by.is_empty(), "CLUSTER BY or DISTRIBUTE BY"),
        (!select.sort_by.is_empty(), "SORT BY"),
        (!select.named_window.is_empty(), "WINDOW"),
        (select.qualify.is_some(), "QUALIFY"),
        (select.value_table_mode.is_some(), "AS STRUCT or AS VALUE"),
        (select.from.is_empty(), "SELECT without FROM"),
        (select.from.len() > 1, "FROM with several tables"),
    ];
    first(&refused)?;
    for from in &select.from {
        check_table(&from.relation)?;
        for join in &from.joins {
            check_table(&join.relation)?;
            match join.join_operator {
                JoinOperator::Join(_) | JoinOperator::Inner(_) => {}
                JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => {}
                JoinOperator::Right(_) | JoinOperator::RightOuter(_) => return Err("RIGHT JOIN"),
                JoinOperator::FullOuter(_) => return Err("FULL JOIN"),
                JoinOperator::CrossJoin(_) => return Err("CROSS JOIN"),
                _ => return Err("a join other than LEFT JOIN and JOIN"),
            }
        }
    }
    Ok(())
}

fn check_table(table: &TableFactor) -> Result<(), &'static str> {
    match table {
        TableFactor::Table {
            args: None,
            version: None,
            with_ordinality: false,
            json_path: None,
            sample: None,
            partitions,
            with_hints,
            ..
        } if partitions.is_empty() && with_hints.is_empty() => Ok(()),
        TableFactor::Table { sample: Some(_), .. } => Err("TABLESAMPLE"),
        TableFactor::Table { .. } | TableFactor::TableFunction { .. } | TableFactor::Function { .. } => {
            Err("a table function or a table with options")
        }
        TableFactor::Derived { .. } => Err("a subquery in FROM"),
        TableFactor::UNNEST { .. } => Err("UNNEST"),
        _ => Err("FROM with anything but a stream and tables"),
    }
}

fn first(refused: &[(bool, &'static str)]) -> Result<(), &'static str> {
    refused.iter().find(|(is_there, _)| *is_there).map_or(Ok(()), |(_, what)| Err(what))
}
