// D holds what `explorer_numbers` gives; `i` is the index of a threshold, `j` that of a photograph.
const $ = id => document.getElementById(id);
const D = JSON.parse($('data').textContent), T = D.thresholds;
const figures = D.images.map((_, j) => $('i' + j));
const distinct = [...new Set(D.images.map(x => x[0]))].sort((a, b) => a - b);
const indexOf = v => { let i = 0; while (i < distinct.length && distinct[i] < v) i++; return i; };
function counts(t) {
  const c = {escape_image: 0, overkill_image: 0, escape_part: 0, overkill_part: 0}, hurt = new Set();
  for (const [s, bad, p] of D.images) {
    const stopped = s >= t;
    if (bad && !stopped) { c.escape_image++; hurt.add(p); }
    if (!bad && stopped) { c.overkill_image++; if (!D.parts[p]) hurt.add(p); }
  }
  for (const p of hurt) c[D.parts[p] ? 'escape_part' : 'overkill_part']++;
  return c;
}
const percent = v => (100*v).toFixed(1) + ' %';
function show(i) {
  const t = T[i], own = T[D.own], c = counts(t);
  $('threshold').textContent = t.toFixed(4);
  for (const k in c) {
    const n = D.intervals[k].length - 1, [low, high] = D.intervals[k][c[k]];
    $(k).textContent = n ? c[k] + ' of ' + n : 'none there';
    $(k).dataset.count = c[k];
    const said = $(k + '_interval');
    said.textContent = n ? percent(c[k]/n) + '; the true rate lies between ' + percent(low) + ' and ' + percent(high) : '';
    said.dataset.low = low; said.dataset.high = high;
  }
  const {left, right, top, bottom} = $('cursor').dataset;
  const x = Number(left) + Math.min(Math.max(t, 0), 1)*(right - left);
  $('cursor').setAttribute('d', 'M' + x + ' ' + top + 'V' + bottom);
  const groups = {new_escape: [], caught: [], new_overkill: [], spared: [], escape: [], overkill: []};
  D.images.forEach(([s, bad], j) => {
    const now = s >= t, before = s >= own;
    figures[j].hidden = true;
    if (now !== before) {
      groups[bad ? (now ? 'caught' : 'new_escape') : (now ? 'new_overkill' : 'spared')].push(j);
    }
    else if (bad && !now) groups.escape.push(j);
    else if (!bad && now) groups.overkill.push(j);
  });
  for (const g in groups) {
    const up = g === 'escape' || g === 'new_escape' || g === 'spared' ? 1 : -1;
    groups[g].sort((a, b) => up*(D.images[a][0] - D.images[b][0]) || a - b);
    $(g + '_n').textContent = groups[g].length;
    $(g).hidden = !groups[g].length;
    const box = $(g).querySelector('.grid');
    for (const j of groups[g]) { figures[j].hidden = false; box.appendChild(figures[j]); }
  }
  const changed = ['new_escape', 'caught', 'new_overkill', 'spared'].reduce((n, g) => n + groups[g].length, 0);
  const who = changed + (changed === 1 ? ' photograph changes' : ' photographs change');
  $('changed').textContent = i === D.own ? 'This is the threshold in use.' : who + ' sides against the threshold in use.';
  $('changed').dataset.count = changed;
}
function go(i) { $('slider').value = i; show(i); }
function cheapest() {
  const price = Math.max(0, Number($('price').value) || 0);
  let best = 0, least = Infinity;
  T.forEach((t, i) => {
    const c = counts(t), cost = price*c.escape_part + c.overkill_part;
    if (cost < least - 1e-9) { least = cost; best = i; }
  });
  go(best);
}
$('slider').max = T.length - 1;
$('slider').addEventListener('input', e => show(Number(e.target.value)));
$('own').addEventListener('click', () => go(D.own));
$('exact').addEventListener('change', e => { if (e.target.value !== '') go(indexOf(Number(e.target.value))); });
$('cheapest').addEventListener('click', cheapest);
go(D.own);
