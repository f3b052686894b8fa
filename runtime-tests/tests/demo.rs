//! The demo that `scripts/up --demo` shows.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

#[tokio::test(flavor = "multi_thread")]
async fn the_story_holds() -> anyhow::Result<()> {
    let mut told = Vec::new();
    runtime_tests::demo::run(&mut told).await?;
    let told = String::from_utf8(told)?;
    let steps: Vec<_> = told
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "enrol", "store", "draw", "call", "rotate", "sweep", "replace", "remove", "draw", "enrol",
        "job", "call", "refuse", "refuse", "admin", "remove", "job",
    ];
    assert_eq!(steps, expected, "{told}");
    Ok(())
}
