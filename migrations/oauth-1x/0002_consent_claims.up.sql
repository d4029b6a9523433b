-- Claims get a table of their own. The plan's backfill fills it; nothing is moved here, because one statement
-- over the whole table would hold its rows for as long as it takes.
create table consent_claims (
    challenge     text primary key,
    claims_access jsonb,
    claims_id     jsonb
);
