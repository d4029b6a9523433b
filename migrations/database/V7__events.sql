-- Each column's text as its type writes it, where the JSON image does not tell it; which kind of write it was
-- (an update that changes the key is a delete and an insert); and how large an event is. All of them are missing
-- in what an older version captured.
alter table {OURS}.outbox add column forms json, add column via text;
alter table {OURS}.outbox_numbered add column forms json, add column via text, add column bytes bigint;
comment on column {OURS}.outbox_numbered.bytes is 'Length of the event as text. Large ones are not in the queue: replay reads them here.';

create table {OURS}.outbox_written (
    capture bigint not null,
    tbl     text not null,
    via     text not null,
    events  bigint not null,
    primary key (capture, tbl, via)
) with (fillfactor = 50);
comment on table {OURS}.outbox_written is 'How many rows of each table were captured, by the kind of write: a cutover compares it with the server''s counters.';

alter table {OURS}.event_quarantine add column retry boolean not null default false;
comment on column {OURS}.event_quarantine.retry is 'Set it to have replay try the events of this key again, in their order.';
