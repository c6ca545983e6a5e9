import json,time
from pathlib import Path
from forks import *
def test_x(forkserver,tmp_path):
    for i in range(2):
        t=time.time()
        tr=Trainer(forkserver,tmp_path/f"r{i}",fail_at="never:0",keep=1)
        code=tr.wait(); print(code,time.time()-t); print(tr.said())
    r=json.loads((tmp_path/"r0.reached.json").read_text())
    print(sum(r.values())); print(json.dumps(r,indent=0))
    t=time.time()
    tr=Trainer(forkserver,tmp_path/f"two",processes=2)
    print(tr.wait(),time.time()-t,tr.said())
    t=time.time()
    tr=Trainer(forkserver,tmp_path/f"host",pipeline="host",workers=1)
    print(tr.wait(),time.time()-t,tr.said())
