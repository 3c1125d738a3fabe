"""Opens studies and storages, resumes studies, and tells which process runs a trial."""
