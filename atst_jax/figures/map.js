'use strict';
for (const map of document.querySelectorAll('.map')) {
  const tip = document.getElementById('tip'), points = map.querySelectorAll('.p');
  const show = (point, x, y) => {
    tip.textContent = point.dataset.name;
    tip.style.display = 'block';
    tip.style.left = Math.min(x + 14, innerWidth - tip.offsetWidth - 6) + 'px';
    tip.style.top = Math.min(y + 14, innerHeight - tip.offsetHeight - 6) + 'px';
  };
  const hide = () => { tip.style.display = 'none'; };
  for (const point of points) {
    point.addEventListener('pointerenter', event => show(point, event.clientX, event.clientY));
    point.addEventListener('pointerleave', hide);
    if (!point.dataset.player) continue;
    const play = () => {
      const figure = document.getElementById(point.dataset.player), audio = figure.querySelector('audio');
      for (const other of document.querySelectorAll('.players figure')) {
        other.classList.toggle('on', other === figure);
        if (other !== figure) other.querySelector('audio').pause();
      }
      audio.currentTime = 0;
      audio.play().catch(() => figure.scrollIntoView({block: 'nearest'}));
    };
    point.addEventListener('click', play);
    point.addEventListener('keydown', event => { if (event.key === 'Enter') play(); });
    point.addEventListener('focus', () => { const at = point.getBoundingClientRect(); show(point, at.x, at.y); });
    point.addEventListener('blur', hide);
  }
  const buttons = map.querySelectorAll('.legend button');
  for (const button of buttons) {
    button.addEventListener('click', () => {
      const chosen = button.getAttribute('aria-pressed') !== 'true';
      for (const other of buttons) other.setAttribute('aria-pressed', String(chosen && other === button));
      for (const point of points) point.classList.toggle('dim', chosen && point.dataset.class !== button.dataset.class);
    });
  }
}
