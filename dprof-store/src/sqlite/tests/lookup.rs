//! Lookups open only the chunks that may hold the id.

use super::*;

#[tokio::test]
async fn a_trace_is_found_among_200_chunks_by_opening_one() {
    let folder = Folder::new(Retention { chunk_bytes: 1, ..TINY });
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    let mut some = Vec::new();
    for _ in 0..200 {
        let batch = source.batch(50);
        some.push(batch.spans[7].clone());
        writer.write(&batch).await.expect("writes");
    }
    writer.close().await.expect("closes");
    assert_eq!(folder.files(".db").len(), 200);
    assert_eq!(folder.files(".ids").len(), 200);
    assert_eq!(folder.files("-wal").len(), 0, "sealed chunks need no log");

    let reader = folder.read();
    let mut asked = 0;
    for span in &some {
        let found = reader.trace(span.trace_id).await.expect("answers");
        assert_eq!((found.rows, found.warnings), (vec![span.clone()], Vec::new()));
        assert_eq!(reader.trace_of_span(span.span_id).await.expect("answers"), Some(span.trace_id));
        assert_eq!(
            reader.traces_with_prefix(&span.trace_id.to_string(), 2).await.expect("answers"),
            [span.trace_id]
        );
        asked += 3;
    }
    // Each question looks at its chunk once, and by mistake at 1 % of the others. Spans with one half are looked
    // up again by span id while climbing, in the chunk that is open already.
    let opened = reader.n_opened();
    assert!(opened <= asked * 4, "{asked} lookups opened {opened} chunks of 200");
    let before = reader.n_opened();
    for id in 1..=100 {
        assert_eq!(reader.trace(TraceId(id)).await.expect("answers").rows, []);
    }
    let opened = reader.n_opened() - before;
    assert!(opened < 100 * 200 * 2 / 100, "100 unknown ids opened {opened} chunks");
}

#[tokio::test]
async fn the_slowest_are_found_by_opening_only_chunks_that_may_hold_them() {
    let folder = Folder::new(Retention { chunk_bytes: 1, ..TINY });
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut batch = source.batch(20);
        if n % 10 == 0 {
            let times = &mut batch.spans[3].server.as_mut().expect("made so").times;
            times.end_ns = times.start_ns + 1_000_000 + n;
            slow.insert(0, batch.spans[3].clone());
        }
        writer.write(&batch).await.expect("writes");
    }
    writer.close().await.expect("closes");
    let reader = folder.read();
    let answer = reader.spans(&slowest(3)).await.expect("answers");
    assert_eq!(answer.rows, slow[..3]);
    assert!(reader.n_opened() <= 4, "{} of 100 chunks opened", reader.n_opened());
    let window = crate::SpanQuery {
        since_unix_ns: EPOCH_NS + 205 * 1_000_000,
        until_unix_ns: EPOCH_NS + 215 * 1_000_000,
        ..slowest(100)
    };
    let before = reader.n_opened();
    assert_eq!(reader.spans(&window).await.expect("answers").rows.len(), 10);
    assert_eq!(reader.n_opened() - before, 1, "the window lies in one chunk");
}

#[tokio::test]
async fn a_chunk_whose_summary_is_lost_is_still_read() {
    let folder = Folder::new(TINY);
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    let batch = source.batch(50);
    writer.write(&batch).await.expect("writes");
    writer.close().await.expect("closes");
    let [summary] = &folder.files(".ids")[..] else { panic!("one chunk") };
    for contents in [None, Some(&b"garbage"[..]), Some(b"")] {
        match contents {
            Some(contents) => std::fs::write(summary, contents).expect("writes"),
            None => std::fs::remove_file(summary).expect("is there"),
        }
        let answer = folder.read().spans(&slowest(1000)).await.expect("answers");
        assert_eq!((answer.rows.len(), answer.warnings), (50, Vec::new()));
    }
}
