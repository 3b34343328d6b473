"""The guest's side: one small file per attachment, one contract (`base.Link`) that all of them keep."""
