alter table consent drop column granted_audience;
alter table refresh_token drop column audience;
alter table access_token drop column audience;
